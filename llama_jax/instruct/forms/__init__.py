"""The published ways to have a model write tasks: each a round of requests and what becomes of the answers."""
