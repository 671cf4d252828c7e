"""A run of a toy task begins with a model that was trained to its end."""

import json
from pathlib import Path

import pytest

from llama_jax.core.errors import UserError
from llama_jax.rl import running
from llama_jax.rl.config import GrpoConfig
from llama_jax.runs import starting
from llama_jax.training.config import TrainingConfig


def begun(folder: Path, step: int) -> None:
    """A run of three steps, as it is found when this one was saved last, be it at the end or at a signal."""
    (folder / "checkpoints" / str(step)).mkdir(parents=True)
    (folder / "config.yaml").write_text("training:\n  steps: 3\n")
    (folder / "metrics.jsonl").write_text("".join(json.dumps({"step": n + 1}) + "\n" for n in range(step)))
    (folder / "curves.png").touch()


def test_what_was_interrupted_is_gone_on_with_and_what_has_ended_is_taken(tmp_path, monkeypatch) -> None:
    made: list[list[str]] = []
    monkeypatch.setattr(starting, "run_first", lambda line: made.append(line) or 0)
    starting.trained_first("pretrain", "tiny/pretrain", str(tmp_path / "new"))
    begun(tmp_path / "interrupted", 2)
    starting.trained_first("pretrain", "tiny/pretrain", str(tmp_path / "interrupted"))
    begun(tmp_path / "ended", 3)
    starting.trained_first("pretrain", "tiny/pretrain", str(tmp_path / "ended"))
    assert [Path(line[-1]).name for line in made] == ["new", "interrupted"]


def test_no_toy_model_is_made_for_settings_that_it_does_not_fit(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(running, "trained_first", lambda *_: pytest.fail("trains"))
    config = GrpoConfig(run_dir=str(tmp_path / "run"), training=TrainingConfig(spike_sigma=0.0))
    with pytest.raises(UserError, match=r"--model: none given, .*row_length 1024.* reads 512 tokens; name a model"):
        running.with_toy_model(config, "grpo")
