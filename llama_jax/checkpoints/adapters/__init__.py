"""Adapters apart from their base: ours and PEFT's, which base they belong to, merged into it."""
