"""From a request to the pieces of its answers: what the engine is asked, the thread that owns it, their text."""
