"""SFT, a reward model and PPO as one: what each stage is told, which are made, and what came of them."""
