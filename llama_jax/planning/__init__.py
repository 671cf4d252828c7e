"""Compiling for hardware that is not here, and reading what the compiler made."""
