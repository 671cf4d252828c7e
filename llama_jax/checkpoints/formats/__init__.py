"""Weights in the formats of others, and in ours: read and written tensor by tensor."""
