"""The plain PyTorch model is the same network: equal logits with equal weights."""

import dataclasses

import jax
import numpy as np
import pytest

from llama_jax.core import tree
from llama_jax.model.config import SIZES, ComputeConfig, RopeScaling
from llama_jax.model.llama import language_model

torch = pytest.importorskip("torch")


@pytest.mark.slow
@pytest.mark.parametrize("tied", [False, True])
def test_equal_weights_give_equal_logits(tied: bool) -> None:
    from llama_jax.benchmarks.pytorch.model import Llama

    config = dataclasses.replace(
        SIZES["tiny"], num_kv_heads=2, tie_embeddings=tied, rope_scaling=RopeScaling(original_context_length=64)
    )
    model = language_model(config, ComputeConfig())
    params = model.init(jax.random.key(0))
    leaves = {path: np.array(leaf) for path, leaf in tree.flatten(params).items()}
    other = Llama(config.to_json())
    with torch.no_grad():
        other.embedding.copy_(torch.from_numpy(leaves["embedding/table"][: config.vocab_size]))
        if other.lm_head is not None:
            other.lm_head.copy_(torch.from_numpy(leaves["lm_head/kernel"].T[: config.vocab_size]))
        for path, leaf in leaves.items():
            if path.startswith("layers/"):
                *_, name, part = path.split("/")
                for number, layer in enumerate(other.layers):
                    kernel = torch.from_numpy(leaf[number])
                    getattr(layer, name).weight.copy_(kernel.T if part == "kernel" else kernel)
    ids = np.arange(48, dtype=np.int32)[None] * 7 % config.vocab_size
    ours = np.asarray(model.logits(params, jax.numpy.asarray(ids)))[..., : config.vocab_size]
    tokens, places = torch.from_numpy(ids).long(), torch.arange(48)
    with torch.no_grad():
        theirs = other.logits(tokens, places).numpy()
        # And the same from a cache, a prompt and then token by token.
        size = (1, config.num_kv_heads, 48, config.head_size)
        caches = [(torch.zeros(size), torch.zeros(size)) for _ in range(config.num_layers)]
        pieces = [other.logits(tokens[:, :40], places[:40], caches)]
        pieces += [other.logits(tokens[:, n : n + 1], places[n : n + 1], caches) for n in range(40, 48)]
    np.testing.assert_allclose(theirs, ours, atol=2e-5)
    np.testing.assert_allclose(torch.cat(pieces, 1).numpy(), ours[:, 39:], atol=2e-5)
