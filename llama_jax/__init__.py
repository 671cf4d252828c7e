"""LLaMA in JAX and Flax: pretraining, fine-tuning and RLHF, from a laptop to a TPU pod.

Files in this folder are commands (`python -m llama_jax.pretrain`); folders are the parts they are built from.
"""

__version__ = "0.1.0"
