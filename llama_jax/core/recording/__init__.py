"""What a run records about itself: metrics, curves, profiles."""
