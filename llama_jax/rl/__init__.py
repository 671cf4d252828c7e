"""Learning from what the model samples itself: rollouts, rewards, advantages."""
