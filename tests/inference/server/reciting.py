"""A model that recites: the last character of what it is told decides which text it answers with, token by token."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from small_tokenizers import llama2c_file

from llama_jax.checkpoints.opening import OpenModel
from llama_jax.core import sharding
from llama_jax.core.config import MeshConfig
from llama_jax.core.mesh import make_mesh
from llama_jax.data.tokenizers import Llama2cTokenizer
from llama_jax.model.config import ComputeConfig, LlamaConfig
from llama_jax.model.llama import language_model

_BYTES, _EOS = 3, 2
_PIECE = 5  # bytes of a token, or some more: too many for what a user says to be spelled with it


def reciting(
    texts: Mapping[str, str | Sequence[str]],
    *,
    template: str | None = "{{ messages[-1].content }}",
    context_length: int = 1024,
) -> OpenModel:
    """The model, on one device.

    Args:
        texts: by the last character of the message, the answer; of several, one at random (at temperature 1). An answer
            that ends in an ellipsis begins again and never ends.
    """
    pieces: list[bytes] = [b" "]
    follows: list[tuple[int, int]] = []
    for last, answers in texts.items():
        for answer in [answers] if isinstance(answers, str) else answers:
            content, first = answer.encode(), _BYTES + 256 + len(pieces)
            ends = [*range(_PIECE, len(content) - _PIECE + 1, _PIECE), len(content)]
            tokens = [content[start:end] for start, end in zip([0, *ends], ends, strict=False)]
            ids = list(range(first, first + len(tokens)))
            pieces += tokens
            end = first if answer.endswith("…") else _EOS
            follows += zip([_BYTES + ord(last), *ids], [*ids, end], strict=True)
    tokenizer = Llama2cTokenizer(llama2c_file([(piece, 0.0) for piece in pieces]))
    if template is not None:
        tokenizer = tokenizer.with_chat_template(template)
    config = LlamaConfig(tokenizer.vocab_size, -(-tokenizer.vocab_size // 128) * 128, 8, 1, 2, 2, 4, context_length)
    model = language_model(config, ComputeConfig())
    # Each token is a direction of its own, the layers add nothing, and the head turns it to what follows.
    head = np.zeros((config.width, config.width), np.float32)
    head[tuple(np.transpose(follows))] = 2.0
    params = jax.tree.map(lambda shape: jnp.zeros(shape.shape), model.shapes())
    params["embedding"]["table"] = jnp.eye(config.width)
    params["final_norm"]["scale"] = jnp.ones(config.width)
    params["lm_head"]["kernel"] = jnp.asarray(head)
    whole = sharding.replicated(make_mesh(MeshConfig(), jax.devices()[:1]))
    return OpenModel(
        model, jax.device_put(params, whole), tokenizer.files(), "models/reciting", None, tokenizer=tokenizer
    )
