"""The architecture: LLaMA as pure functions of a parameter tree. Knows no loss and no files."""
