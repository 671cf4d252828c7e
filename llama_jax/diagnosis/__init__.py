"""Whether this machine is fit to train: facts, mistakes that explain them, and short measurements."""
