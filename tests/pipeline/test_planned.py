"""What `plan` says of an iteration of PPO: by the names of its metrics, and all that lies in memory counted once."""

import importlib.util
import json

import pytest
from command_runs import call

from llama_jax.core.errors import UserError
from llama_jax.pipeline.outcome import PHASES
from llama_jax.pipeline.planned import measured_iteration, predicted_iteration
from llama_jax.rl.config import PromptDataConfig
from llama_jax.rl.loop import Clock
from llama_jax.rl.ppo_config import PpoConfig, PpoRolloutConfig

CONFIG = PpoConfig(
    data=PromptDataConfig(max_prompt_tokens=6),
    rollout=PpoRolloutConfig(prompts=10, max_new_tokens=4),
    rollout_epochs=3,
    minibatches=2,
)


def program(phase: str, runs: int, seconds: float) -> dict:
    return {"phase": phase, "program": "p", "runs": runs, "fits": True, "roofline": {"as_scheduled": seconds}}


PROGRAMS = [
    program("layout", 0, 100.0),  # before the first iteration alone
    program("layout", 1, 0.5),
    program("generation", 2, 0.5),
    program("generation", 4, 0.25),
    program("scoring", 1, 1.0),
    program("update", 6, 0.25),
]


def test_an_iteration_is_what_its_programs_take_by_the_names_of_its_metrics() -> None:
    found = predicted_iteration(CONFIG, PROGRAMS)
    clock = Clock()
    for phase in PHASES:
        with clock.timing(phase):
            pass
    assert found.keys() == clock.record(1, 1, 1).keys()
    assert [found[f"{phase}_seconds"] for phase in PHASES] == [2.0, 1.0, 0.5, 1.5] and found["step_seconds"] == 5.0
    # 10 completions of 4 tokens, read with prompts of 6; policy and critic read them in each of three epochs.
    assert (found["tokens_per_second"], found["generation_tokens_per_second"]) == (8.0, 20.0)
    assert (found["scoring_tokens_per_second"], found["update_tokens_per_second"]) == (100.0, 400.0)


def test_nothing_is_said_of_a_phase_that_does_not_fit() -> None:
    found = predicted_iteration(CONFIG, [*PROGRAMS, {"phase": "update", "program": "p", "runs": 1, "fits": False}])
    assert found["update_seconds"] is found["update_tokens_per_second"] is found["step_seconds"] is None
    assert found["scoring_seconds"] == 1.0


def test_measured_times_are_medians_behind_the_iterations_that_compile(tmp_path) -> None:
    seconds = [90.0, 50.0, 2.0, 3.0, 10.0]
    records = [{"step": n, "generation_seconds": value, "reward": None} for n, value in enumerate(seconds, 1)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert measured_iteration(str(tmp_path)) == {"generation_seconds": 3.0}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(records[0]) + "\n")
    with pytest.raises(UserError, match=r"has no metrics.jsonl of ppo with more than 2 iterations"):
        measured_iteration(str(tmp_path))


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu has no wheel here")
def test_all_that_rlhf_runs_is_compiled_beside_what_the_run_keeps(capfd) -> None:
    line = ("--config", "tiny/rlhf", "--size", "tiny", "--sft.model", "none", "--topology", "v5e:2x2", "--json")
    assert call("plan rlhf", *line, "--ppo.average_decay", 0.9) == 0
    report = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert report["what"] == "rlhf" and report["fits"]
    assert [report["stages"][name]["what"] for name in ("sft", "reward")] == ["sft step", "reward step"]
    programs = {(each["phase"], each["program"]): each for each in report["stages"]["ppo"]["programs"]}
    roles = ["policy", "reference", "critic", "reward model"]
    assert [name for phase, name in programs if phase == "scoring"] == roles
    assert [name for phase, name in programs if phase == "update"] == ["policy", "critic"]
    # Whatever runs, all that the run keeps is in memory once: as an argument, or beside.
    kept = set()
    for (phase, _), each in programs.items():
        if phase != "layout":
            held = {
                name: size for name, size in each["memory"]["held"].items() if name != "batch" or phase == "generation"
            }
            kept.add(each["memory"]["beside"] + sum(held.values()))
    assert max(kept) - min(kept) <= 8  # two counters of a state are of no kind
    iteration = report["stages"]["ppo"]["iteration"]
    assert iteration["step_seconds"] == pytest.approx(sum(iteration[f"{phase}_seconds"] for phase in PHASES))
