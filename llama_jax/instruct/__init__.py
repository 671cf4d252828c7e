"""Self-Instruct: instruction data that a model writes from a few seed tasks."""
