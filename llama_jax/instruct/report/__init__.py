"""What a run of Self-Instruct made, in numbers and pictures."""
