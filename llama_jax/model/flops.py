"""Floating-point operations of a training step, by one stated convention."""

from llama_jax.core import tree
from llama_jax.core.arrays import PyTree
from llama_jax.model import paths
from llama_jax.model.llama import LanguageModel

CONVENTION = (
    "6 x parameters in matrix products, 4 x where frozen, + 6 x layers x heads x head size x context (causal attention)"
)


def flops_per_token(model: LanguageModel, sequence_length: int, trained: PyTree | None = None) -> int:
    """Model FLOPs of forward and backward pass for one token of a row of `sequence_length`.

    Six for each parameter that multiplies (a multiplication and an addition, forward once and backward twice), so
    the embedding lookup does not count, but a tied table does as the head. A frozen parameter has no gradient of its
    own, so four for each of those. Attention scores and mixing add
    12 * L * N * H * T for full rows, half of it under the causal mask. Recomputation does not count, nor does the
    separation of packed documents reduce the figure.

    Args:
        trained: the leaves that train, shapes of them, where not all do; those below `lora` come on top of the model's.
    """
    config = model.config
    lookup = 0 if config.table_is_head else config.vocab_size * config.width
    attention = 6 * config.num_layers * config.num_heads * config.head_size * sequence_length
    products = model.parameter_count() - lookup
    if trained is None:
        return 6 * products + attention
    sizes = {path: tree.size(leaf) for path, leaf in tree.flatten(trained).items()}
    added = sum(size for path, size in sizes.items() if paths.is_adapter(path))
    table = 0 if config.table_is_head else sizes.get(paths.TABLE, 0)
    return 4 * products + 2 * (sum(sizes.values()) - added - table) + 6 * added + attention
