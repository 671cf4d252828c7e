"""What a model makes of rows of examples: packing changes neither loss nor gradient, and no example sees another."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.core.batches import TokenBatch
from llama_jax.data.config import InstructionDataConfig
from llama_jax.data.instructions.loader import ExampleLoader
from llama_jax.model.config import ComputeConfig, LlamaConfig
from llama_jax.model.llama import language_model
from llama_jax.objectives.next_token import next_token

CONFIG = LlamaConfig(
    vocab_size=320, width=32, mlp_width=48, num_layers=2, num_heads=4, num_kv_heads=2, head_size=8, context_length=64
)


@pytest.fixture(scope="module")
def model():
    return language_model(CONFIG, ComputeConfig())


@pytest.fixture(scope="module")
def params(model):
    return jax.jit(model.init)(jax.random.key(0))


@pytest.fixture
def batches(tmp_path, tokenizer):
    """Rows of the same examples, packed, padded and grouped: each all of an epoch, as one batch a shape of rows."""
    records = [{"instruction": "the " * (n % 5 + 1), "output": "son " * (n * 3 % 11 + 1)} for n in range(24)]
    (tmp_path / "a.json").write_text(json.dumps(records))

    def of(**config):
        settings = {"template": "llama2", "validation_fraction": 0.0, "sequence_length": 64, **config}
        config = InstructionDataConfig(source=f"{tmp_path}/a.json", **settings)
        loader = ExampleLoader(config, tokenizer, 0, batch_size_at=lambda step: 8)
        found = []
        try:
            for rows, _ in itertools.islice(loader.start(), loader.steps_of_epochs(1, 8)):
                found.append(TokenBatch(**jax.tree.map(jnp.asarray, rows), normalizer=jnp.float32(1)))
        finally:
            loader.close()
        return found

    return {
        "packed": of(),
        "padded": of(packing="none"),
        "grouped": of(packing="none", group_by_length=True, pad_multiple=8),
    }


@pytest.mark.slow
def test_packed_and_padded_rows_have_the_same_loss_and_gradient(model, params, batches):
    objective = next_token(model)
    gradient = jax.jit(jax.value_and_grad(lambda params, batch: objective(params, {}, batch, None)[0]))
    losses, gradients = {}, {}
    for kind, parts in batches.items():
        tokens = sum(float(batch.loss_weights.sum()) for batch in parts)
        found = [gradient(params, batch.replace(normalizer=jnp.float32(tokens))) for batch in parts]
        losses[kind] = sum(float(loss) for loss, _ in found)
        gradients[kind] = jax.tree.map(lambda *leaves: sum(leaves), *(each for _, each in found))
    assert len(batches["packed"][0].tokens) == 8 and len(batches["packed"]) < len(batches["padded"]) == 3
    assert len({batch.tokens.shape for batch in batches["grouped"]}) > 1
    for kind in ("padded", "grouped"):
        assert losses[kind] == pytest.approx(losses["packed"], abs=1e-6)
        for one, other in zip(jax.tree.leaves(gradients[kind]), jax.tree.leaves(gradients["packed"]), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-6)


def test_an_example_in_a_packed_row_sees_no_other(model, params, batches):
    """By gradients: the loss of each example, differentiated by the embedding of each token of its row."""
    batch = batches["packed"][0]
    row = max(range(8), key=lambda number: int(batch.segment_ids[number].max()))
    one = jax.tree.map(lambda leaf: leaf[row : row + 1] if leaf.ndim else leaf, batch)
    length, segments = one.tokens.shape[1], np.asarray(one.segment_ids[0])
    count = int(segments.max())
    table = params["embedding"]["table"]

    def losses(rows):
        # Token i is given row i of a table of its own, so that the gradient tells positions apart.
        own = params | {"embedding": {"table": table.at[:length].set(rows)}}
        hidden = model.hidden(own, jnp.arange(length)[None], one.positions, one.segment_ids)
        logits = model.unembed(model.head(params), hidden)[0]
        nats = -jax.nn.log_softmax(logits)[:, 0] * one.loss_weights[0]
        return jax.ops.segment_sum(nats, segments, count + 1)

    influence = np.abs(jax.jit(jax.jacobian(losses))(table[one.tokens[0]])).max(axis=-1) > 0
    assert count >= 3
    for number in range(1, count + 1):
        last = int(np.flatnonzero((segments == number) & (np.asarray(one.loss_weights[0]) > 0))[-1])
        within = (segments == number) & (np.arange(length) <= last)
        np.testing.assert_array_equal(influence[number], within)
