"""A reward model begins with a language model or with another reward model; its head always trains, is saved, and is
there again after a resume."""

import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_runs import ARCHITECTURE, LENGTH, ROWS, Counted, KilledError, Place, killed_before

from llama_jax.checkpoints.config import CheckpointConfig
from llama_jax.core import tree
from llama_jax.core.arrays import PyTree
from llama_jax.core.batches import completion_batch
from llama_jax.core.config import TrackingConfig
from llama_jax.core.errors import UserError
from llama_jax.core.recording.metrics import MetricsRecord
from llama_jax.model.config import AdapterConfig, ComputeConfig
from llama_jax.model.llama import LanguageModel, language_model
from llama_jax.model.quantized import store_as
from llama_jax.objectives.objective import Objective
from llama_jax.objectives.reward import bradley_terry, scored
from llama_jax.runs.config import RunConfig
from llama_jax.runs.methods import Method, all_parameters, build_program, low_rank_adapter, with_scalar_head
from llama_jax.runs.resuming import opened_run
from llama_jax.runs.supervised_run import Task, train
from llama_jax.training.config import TrainingConfig
from llama_jax.training.program import Program

MODEL = language_model(ARCHITECTURE, ComputeConfig())
FULL = with_scalar_head(all_parameters())
LORA = with_scalar_head(low_rank_adapter(AdapterConfig(rank=2), "bfloat16", 1e-3))
KIND = completion_batch(1, 2)
BASE = jax.jit(MODEL.init)(jax.random.key(0))


def begun(method: Method, params: PyTree = BASE, seed: int = 1) -> dict:
    return tree.flatten(method.begin(params, jax.random.key(seed)))


def test_a_language_model_loses_its_output_matrix_and_gets_a_fresh_head() -> None:
    before, after = tree.flatten(BASE), begun(FULL)
    assert before.keys() - after.keys() == {"lm_head/kernel"} and after.keys() - before.keys() == {"score/kernel"}
    for path in before.keys() & after.keys():
        np.testing.assert_array_equal(before[path], after[path])
    assert after["score/kernel"].shape == (ARCHITECTURE.width, 1)
    assert (after["score/kernel"] != begun(FULL, seed=2)["score/kernel"]).all()
    assert FULL.architecture(ARCHITECTURE) == replace(ARCHITECTURE, scalar_head=True)


def test_the_head_is_drawn_as_it_was_published() -> None:
    """Stiennon et al. 2020: normal, variance 1 / (width + 1)."""
    wide = BASE | {"final_norm": {"scale": jnp.ones(10_000)}}
    drawn = np.asarray(FULL.begin(wide, jax.random.key(0))["score"]["kernel"])
    assert drawn.std() * 10_001**0.5 == pytest.approx(1, abs=0.02) and abs(drawn.mean()) < 4e-4


def test_a_reward_model_keeps_its_head_and_no_other_command_takes_it() -> None:
    scalar, params = replace(ARCHITECTURE, scalar_head=True), FULL.begin(BASE, jax.random.key(5))
    np.testing.assert_array_equal(begun(FULL, params)["score/kernel"], params["score"]["kernel"])
    with pytest.raises(UserError, match="is a reward model, which has lost its output matrix"):
        all_parameters().architecture(scalar)
    assert FULL.architecture(scalar) == scalar


@pytest.mark.parametrize("method", [FULL, LORA], ids=["full", "lora"])
def test_the_head_trains_in_float32_and_is_saved_whatever_else_does(method) -> None:
    model = language_model(method.architecture(ARCHITECTURE), ComputeConfig())
    parts = method.partition(model)
    shapes = tree.flatten(jax.eval_shape(lambda: parts.init(jax.random.key(0))))
    after = begun(method, tree.cast(FULL.begin(BASE, jax.random.key(5)), jnp.dtype("bfloat16")))
    assert shapes.keys() == after.keys() == tree.flatten(parts.axes).keys()
    for leaf in (shapes["score/kernel"], after["score/kernel"]):
        assert leaf.dtype == jnp.float32
    assert parts.is_trainable("score/kernel") and method.is_saved("score/kernel")
    assert "score/kernel" not in parts.decays
    assert parts.is_trainable("embedding/table") == (method is FULL)


@dataclass
class Pairs(Counted):
    """Pairs that their numbers decide: half of a row each."""

    def start(self, position: Place | None = None) -> Iterator[tuple[dict[str, np.ndarray], Place]]:
        half = LENGTH // 2
        for rows, place in super().start(position):
            row = {name: np.stack([array] * ROWS) for name, array in KIND.empty_row(LENGTH).items()}
            row |= {name: rows[name] for name in ("tokens", "targets")}
            row["segment_ids"] = np.tile(np.repeat([1, 2], half), (ROWS, 1)).astype(np.int32)
            row["positions"] = np.tile(np.arange(LENGTH) % half, (ROWS, 1)).astype(np.int32)
            row["starts"], row["ends"] = row["starts"] + [[0, half]], row["ends"] + [[half - 1, LENGTH - 1]]
            yield {**row, "example_weights": row["example_weights"] + 1}, place


def measured(record: MetricsRecord) -> dict[str, bytes]:
    return {"model/measured": str(record["reward_mean"]).encode()} if "reward_mean" in record else {}


CONFIG = RunConfig(
    training=TrainingConfig(steps=4, batch_size=ROWS, warmup_steps=1, evaluate_every=2, schedule_steps=4),
    checkpoints=CheckpointConfig(every=1),
    tracking=TrackingConfig(tensorboard=False),
)


@functools.cache
def compiled() -> Program:
    def objective(model: LanguageModel) -> Objective:
        return scored(model, KIND, bradley_terry())

    return build_program(CONFIG, LORA, objective, ARCHITECTURE, LENGTH, jax.devices()[:1])


def run_to_the_end(folder, data: Counted) -> dict:
    """Train an adapter and a head for four steps, saving each; gives what the last checkpoint says of its arrays."""
    config, program = replace(CONFIG, run_dir=str(folder)), compiled()
    with jax.set_mesh(program.mesh), opened_run(config, "toy") as run:
        base = store_as(BASE, LORA.store)
        unsaved = {path for path in tree.flatten(program.frozen_shapes) if not LORA.is_saved(path)}
        task = Task(
            program=program,
            data=data,
            fresh=lambda: program.begin(LORA.begin(base, jax.random.key(1))),
            evaluate=lambda state, frozen: {"validation_loss": 1.0, "reward_mean": float(state.batches)},
            files={"model/config.json": b"{}"},
            hashes={},
            measured_files=measured,
            params_item=LORA.params_item,
            is_saved=LORA.is_saved,
            unsaved_params=tree.split(base, unsaved.__contains__)[0],
        )
        train(config, run, task)
    return json.loads((folder / "checkpoints" / "4" / "manifest.json").read_text())["leaves"]


@pytest.mark.slow
def test_a_killed_run_ends_with_the_head_of_one_that_was_not(tmp_path) -> None:
    whole = run_to_the_end(tmp_path / "whole", Pairs())
    with pytest.raises(KilledError):
        run_to_the_end(tmp_path / "killed", Pairs(before_batch=killed_before(3).before_batch))
    middle = json.loads((tmp_path / "killed" / "checkpoints" / "2" / "manifest.json").read_text())["leaves"]
    assert run_to_the_end(tmp_path / "killed", Pairs()) == whole
    assert {path.partition("/")[0] for path in whole["adapter"]} == {"lora", "score"}
    assert whole["adapter"]["score/kernel"] != middle["adapter"]["score/kernel"]
    of_steps = [tmp_path / "whole" / "checkpoints" / step / "model" / "measured" for step in ("3", "4")]
    assert [path.exists() for path in of_steps] == [False, True] and of_steps[1].read_bytes() == b"4.0"
