"""Floating-point operations of a training step, by one stated convention."""

from llama_jax.model.llama import LanguageModel

CONVENTION = "6 x parameters in matrix products + 6 x layers x heads x head size x context (causal attention)"


def flops_per_token(model: LanguageModel, sequence_length: int) -> int:
    """Model FLOPs of forward and backward pass for one token of a row of `sequence_length`.

    Six for each parameter that multiplies (a multiplication and an addition, forward once and backward twice), so
    the embedding lookup does not count, but a tied table does as the head. Attention scores and mixing add
    12 * L * N * H * T for full rows, half of it under the causal mask. Recomputation does not count, nor does the
    separation of packed documents reduce the figure.
    """
    config = model.config
    lookup = 0 if config.tie_embeddings else config.vocab_size * config.width
    attention = 6 * config.num_layers * config.num_heads * config.head_size * sequence_length
    return 6 * (model.parameter_count() - lookup) + attention
