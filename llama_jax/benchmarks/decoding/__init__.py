"""Measurements of decoding: the engine, and other programs with the same weights beside it."""
