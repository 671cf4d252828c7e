"""A stage that is done is not made again; one that is not, or is damaged, or is asked for otherwise, is."""

import json
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import pytest

from llama_jax.checkpoints.config import CheckpointConfig
from llama_jax.checkpoints.steps.saving import Checkpoints
from llama_jax.core.errors import SavedAfterSignal, UserError
from llama_jax.pipeline.stages import Stage, make_stages
from llama_jax.runs.config import RunConfig
from llama_jax.training.config import TrainingConfig


@pytest.fixture
def made(tmp_path) -> tuple[list[str], list[Stage]]:
    """Which stages were made, and the stages."""
    calls: list[str] = []

    def make(config: RunConfig) -> None:
        calls.append(Path(config.run_dir).name)
        if config.resume == 3:
            raise SavedAfterSignal("interrupted")
        checkpoints = Checkpoints(Path(config.run_dir) / "checkpoints", CheckpointConfig(), say=print)
        if config.training.steps not in checkpoints.steps():
            checkpoints.save(config.training.steps, {"params": {"a": jnp.ones(2)}}, {"model/config.json": b"{}"}, {})
        checkpoints.close()

    def stage(name: str) -> Stage:
        return Stage(name, RunConfig(run_dir=str(tmp_path / name), training=TrainingConfig(steps=2)), make, None)

    return calls, [stage(name) for name in ("sft", "reward", "ppo")]


def test_what_is_done_is_not_made_again(made, tmp_path, capsys) -> None:
    calls, stages = made
    make_stages(str(tmp_path), stages)
    assert calls == ["sft", "reward", "ppo"]
    make_stages(str(tmp_path), stages)
    assert calls == ["sft", "reward", "ppo"]
    assert f"stage 2 of 3, reward: done, {tmp_path / 'reward'} is at step 2 and verifies" in capsys.readouterr().out


def test_a_stage_that_was_interrupted_is_gone_on_with_and_those_after_it_are_made(made, tmp_path) -> None:
    calls, stages = made
    stopped = [stages[0], stages[1]._replace(config=replace(stages[1].config, resume=3)), stages[2]]
    with pytest.raises(SavedAfterSignal):
        make_stages(str(tmp_path), stopped)
    make_stages(str(tmp_path), stages)
    assert calls == ["sft", "reward", "reward", "ppo"]


def test_a_stage_is_made_again_where_it_is_damaged_or_asked_for_otherwise(made, tmp_path) -> None:
    calls, stages = made
    make_stages(str(tmp_path), stages)
    step = tmp_path / "sft" / "checkpoints" / "2"
    victim = next(path for path in sorted(step.rglob("*")) if path.is_file() and path.name != "manifest.json")
    victim.write_bytes(victim.read_bytes() + b"x")
    changed = stages[2]._replace(config=replace(stages[2].config, seed=1))
    make_stages(str(tmp_path), [stages[0], stages[1], changed])
    assert calls[3:] == ["sft", "ppo"]


def test_a_damaged_record_of_what_is_done_is_named(made, tmp_path) -> None:
    calls, stages = made
    (tmp_path / "done.json").write_text("{")
    with pytest.raises(UserError, match=r"done.json: is not JSON: .*; remove it: the stages are looked at again"):
        make_stages(str(tmp_path), stages)
    assert not calls


def test_what_is_of_elsewhere_is_never_made(made, tmp_path, capsys) -> None:
    calls, stages = made
    make_stages(str(tmp_path), [stages[0]._replace(elsewhere="a/model"), *stages[1:]])
    assert calls == ["reward", "ppo"]
    assert "sft: not made, taking a/model" in capsys.readouterr().out
    assert "sft" not in json.loads((tmp_path / "done.json").read_text())


def test_a_stage_that_was_made_after_another_result_of_one_before_it_is_refused(made, tmp_path) -> None:
    _, stages = made
    make_stages(str(tmp_path), stages)
    longer = stages[0]._replace(config=replace(stages[0].config, training=TrainingConfig(steps=3)))
    with pytest.raises(UserError, match="reward: was made after step 2 of sft, which is at step 3 now"):
        make_stages(str(tmp_path), [longer, *stages[1:]])
