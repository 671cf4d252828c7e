"""The optimizer, the one gradient step and the one supervised loop."""
