"""Saving, verifying and restoring with orbax; weights of other formats; opening a model to use it."""
