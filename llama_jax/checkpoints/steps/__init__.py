"""Checkpoints of a run: saved, verified, restored, deleted. Orbax lives here."""
