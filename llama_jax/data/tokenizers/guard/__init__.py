"""Tokenizer files that could ask for more time or memory than a text is worth: told from others, and bounded."""
