"""Sampling and cached decoding."""
