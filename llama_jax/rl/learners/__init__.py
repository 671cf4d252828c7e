"""What an iteration does, by method: with a critic, or without."""
