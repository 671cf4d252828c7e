"""The architecture as pure functions of a parameter tree; adapters and heads beside it. Knows no loss and no files."""
