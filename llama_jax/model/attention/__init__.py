"""Attention in every implementation, and the choice between them."""
