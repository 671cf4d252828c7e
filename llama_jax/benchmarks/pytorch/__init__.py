"""The same models in plain PyTorch, which is all they need: the other side where a GPU is measured."""
