"""Processes: those of one job, which agree, and those of one machine, which keep out of each other's way."""
