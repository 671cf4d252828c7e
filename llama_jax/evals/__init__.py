"""Measurements of a model, each a function that returns a dictionary of results."""
