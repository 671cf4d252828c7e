"""A loss with a batch class of its own, pairs of rows, trains through the one step, loop and checkpoint."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from llama_jax.checkpoints.config import CheckpointConfig
from llama_jax.checkpoints.steps.restoring import restore
from llama_jax.checkpoints.steps.saving import Checkpoints
from llama_jax.core import tree
from llama_jax.core.batches import Batch, array, total
from llama_jax.core.config import MeshConfig
from llama_jax.core.mesh import make_mesh
from llama_jax.model.config import SIZES, ComputeConfig
from llama_jax.model.llama import LanguageModel, language_model
from llama_jax.objectives.objective import Objective
from llama_jax.training.checkpoint_items import checkpoint_items, from_checkpoint_items
from llama_jax.training.config import TrainingConfig
from llama_jax.training.loop import Hooks, fit
from llama_jax.training.program import Partition, make_program

CONFIG = TrainingConfig(steps=30, batch_size=8, microbatches=2, warmup_steps=5, peak_learning_rate=1e-2)


class Pairs(Batch):
    """Two answers, the better one first."""

    tokens: jax.Array = array(np.int32, "batch", 2, "length", is_read=True)
    weights: jax.Array = array(np.float32, "batch")
    pairs: jax.Array = total("weights")


def bradley_terry(model: LanguageModel) -> Objective:
    """-log sigmoid(difference of the scores), a score being a linear function of the last hidden state."""

    def loss(trainable, frozen, batch, rng):
        params = tree.join(trainable, frozen)
        hidden = model.hidden(params, batch.tokens.reshape(-1, batch.tokens.shape[-1]), rng=rng)
        better, worse = (hidden[:, -1] @ params["score"]["vector"]).reshape(-1, 2).T
        return (mean := jnp.sum(batch.weights * -jax.nn.log_sigmoid(better - worse)) / batch.pairs), {"loss": mean}

    return Objective(loss, Pairs)


def data(program, first: int):
    """Of the two rows the better one has more of token 7."""
    for step in range(first, CONFIG.steps):
        random = np.random.default_rng(step)
        tokens = random.integers(8, 100, (8, 2, 16), np.int32)
        tokens[:, 0][random.random((8, 16)) < 0.5] = 7
        yield program.place_batch({"tokens": tokens, "weights": np.ones(8, np.float32)}, 8), step + 1


@pytest.mark.slow
def test_pairs_of_rows_train_and_resume_exactly(tmp_path) -> None:
    model = language_model(SIZES["tiny"], ComputeConfig())
    score = {"score": {"vector": PartitionSpec(None)}}
    init = lambda key: model.init(key) | {"score": {"vector": jnp.zeros(model.config.width)}}  # noqa: E731
    partition = Partition(init, model.axes | score, model.decays, lambda path: True)
    with jax.set_mesh(make_mesh(MeshConfig(2, 2, 1, 2))):
        program = make_program(model, bradley_terry(model), CONFIG, 16, seed=0, partition=partition)
        checkpoints, records, resumed = Checkpoints(tmp_path, CheckpointConfig(), say=print), [], []

        def hooks(keep):
            save = lambda state, frozen, position, record: checkpoints.save(  # noqa: E731
                record["step"], checkpoint_items(state, frozen), {"data/position": str(position).encode()}, {}
            )
            return Hooks(keep.append, lambda *_: {}, lambda _: False, save, lambda _: False, lambda _: None)

        tokens = lambda position: 8 * 2 * 16 * position  # noqa: E731
        last, _ = fit(program, *program.init(jax.random.key(0)), data(program, 0), hooks(records), 10, tokens)
        checkpoints.wait()
        found = restore(tmp_path, checkpoint_items(program.state_shapes, {}), files=("data",), step=20, say=print)
        state, frozen = from_checkpoint_items(found.items, program.state_shapes)
        first = int(found.files["data/position"])
        again, _ = fit(program, state, frozen, data(program, first), hooks(resumed), 10, tokens)
    assert abs(records[0]["loss"] - np.log(2)) < 1e-6 and records[-1]["loss"] < 0.05
    assert [record["tokens"] for record in records] == [8 * 2 * 16 * (step + 1) for step in range(30)]
    assert [each["loss"] for each in resumed] == [each["loss"] for each in records[20:]]
    jax.tree.map(np.testing.assert_array_equal, again, last)
