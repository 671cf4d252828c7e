"""What a compiled program says of itself: its FLOPs, its memory traffic, what it sends."""
