"""Losses as pure functions of parameters and batches. Know no model."""
