"""Measurements of speed and memory: of the training step, against another program, and as sizes grow."""
