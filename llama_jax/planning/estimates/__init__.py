"""Memory, communication and time of a step, estimated without compiling it."""
