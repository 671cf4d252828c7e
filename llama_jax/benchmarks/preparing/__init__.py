"""Preparation of a corpus: its rates here, and beside datatrove."""
