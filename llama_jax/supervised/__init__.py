"""A supervised run, between the command that asks for it and the loop: what pretraining, SFT and LoRA share. Knows
sections of a configuration, not commands."""
