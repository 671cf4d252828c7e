"""What is done with a reward model that a run has trained, through the real commands."""

import json

import pytest
from command_runs import call, metrics
from test_reward import STEPS, Rewarded, preferences, rewarded

from llama_jax.checkpoints.reward_normalization import NORMALIZATION_FILE

__all__ = ["preferences", "rewarded"]  # fixtures


def converted(source, target, kind: str, capfd) -> dict:
    assert call("convert", "--source", source, "--target", target, "--format", kind, "--json") == 0, capfd.readouterr()
    return json.loads(capfd.readouterr().out.splitlines()[-1])


def measured(capfd, *line: object) -> dict:
    assert call("evaluate", "--task", "preference", *line, "--json") == 0, capfd.readouterr()
    return json.loads(capfd.readouterr().out.splitlines()[-1])


@pytest.mark.slow
def test_a_run_and_its_exports_are_one_reward_model(rewarded: Rewarded, preferences, tmp_path, capfd) -> None:
    run, scale = rewarded.run_dir, rewarded.run_dir / "checkpoints" / str(STEPS) / "model" / NORMALIZATION_FILE
    last, own = metrics(run)[-1], measured(capfd, "--model", run)
    assert (own["documents"], own["accuracy"]) == (80, last["validation_accuracy"])
    assert own["length_accuracy"] == pytest.approx(last["validation_length_accuracy"])
    assert own["reward_margin"] == pytest.approx(last["validation_reward_margin"], abs=1e-5)
    everything = ("--data", preferences, "--sequence_length", 64, "--batch_size", 32)
    whole = measured(capfd, "--model", run, *everything)
    for kind in ("hf", "peft"):
        report = converted(run, tmp_path / kind, kind, capfd)
        assert report["check"]["max_score_difference"] < 1e-4 < report["check"]["score_standard_deviation"]
        assert (tmp_path / kind / NORMALIZATION_FILE).read_text() == scale.read_text()
    found = measured(capfd, "--model", tmp_path / "hf", *everything)
    assert found["documents"] == whole["documents"] == 400
    for name in ("accuracy", "reward_margin", "reward_normalization"):
        assert found[name] == pytest.approx(whole[name], abs=1e-4)
    assert json.loads((tmp_path / "peft" / "adapter_config.json").read_text())["modules_to_save"] == ["score"]


def test_formats_without_a_place_for_the_head_are_not_written(rewarded: Rewarded, tmp_path, capfd) -> None:
    target = tmp_path / "model.bin"
    assert call("convert", "--source", rewarded.run_dir, "--target", target, "--format", "llama2c") == 2
    message = capfd.readouterr().err.splitlines()[-1]
    assert "has a scalar head, which llama2.c has no place for; use --format hf or orbax" in message
    assert list(tmp_path.iterdir()) == []
