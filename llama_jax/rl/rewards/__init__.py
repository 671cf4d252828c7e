"""Rewards that Python functions give, in processes of their own."""
