"""What both sides of `benchmark grpo` and `benchmark ppo` are given."""

import functools
import importlib.util
import json
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import numpy as np
import pytest
from command_runs import call
from packaging.version import Version
from small_tokenizers import TALE

from llama_jax.benchmarks import turns
from llama_jax.benchmarks.rl.config import RlBenchmarkConfig
from llama_jax.benchmarks.rl.models import opened_by_both
from llama_jax.benchmarks.rl.own_side import PHASES, text_of
from llama_jax.config import COMMANDS, PRESETS
from llama_jax.core.errors import UserError
from llama_jax.core.settings.command_line import parse, to_yaml
from llama_jax.data.instructions.records import Turn
from llama_jax.data.instructions.templates import Layout
from llama_jax.data.tokenizers import train_tokenizer

SMALL = ("--architecture.width", "32", "--architecture.num_layers", "1", "--architecture.mlp_width", "64")


@functools.cache
def parsed(what: str, *arguments: str) -> RlBenchmarkConfig:
    command, given = f"benchmark {what}", ("--config", f"benchmark_{what}", *arguments)
    return parse(COMMANDS[command], given, command=command, commands=COMMANDS, presets=PRESETS)


def changed(config: RlBenchmarkConfig, changes: dict[str, Any]) -> RlBenchmarkConfig:
    """With other settings, by path."""
    given: dict[str, Any] = {}
    for path, value in changes.items():
        section, _, name = path.rpartition(".")
        given |= {section: replace(getattr(config, section), **{name: value})} if section else {name: value}
    return replace(config, **given)


def test_trl_is_asked_for_the_same():
    assert parsed("grpo", "--loss", "dr_grpo").settings_of_trl == {
        "loss_type": "dr_grpo",
        "beta": 0.0,
        "num_iterations": 1,
    }
    config = changed(parsed("ppo"), {"method": "full", "clip": 0.1})
    assert config.settings_of_trl == {
        "num_ppo_epochs": 4,
        "kl_coef": 0.05,
        "kl_estimator": "k1",
        "cliprange": 0.1,
        "cliprange_value": 0.2,
        "gamma": 1.0,
        "lam": 0.95,
        "whiten_rewards": False,
    }
    assert (config.name, config.trains_alike) == ("ppo_full_against_trl", True)
    given = config.opening("a", "b")
    assert (given.run.model, given.reward_path) == ("a", "b")


@pytest.mark.parametrize(
    "what, changes, message",
    [
        ("grpo", {"turns": 0}, "--turns 0: must be at least 1"),
        ("grpo", {"loss": "gspo"}, "loss: gspo, but --against trl is for grpo, dr_grpo and dapo"),
        ("grpo", {"rollout.resampled": 1}, "rollout.resampled: 1, but --against trl is for 0"),
        ("ppo", {"minibatches": 2}, "minibatches: 2, but --against trl is for 1"),
        ("ppo", {"kl.coefficient": 0.0}, "kl.coefficient: 0, but --against trl always has a reference"),
        ("ppo", {"model_dtype": "bfloat16"}, "model_dtype: bfloat16, but --against trl is for float32"),
    ],
)
def test_what_trl_cannot_do_alike_is_refused(what, changes, message):
    with pytest.raises(UserError, match=f"^{message}"):
        changed(parsed(what), changes)


def test_settings_that_the_sides_have_their_own_of_are_refused():
    with pytest.raises(UserError, match=r"^data.source: mine.jsonl, but benchmark grpo makes its own; leave it out$"):
        changed(parsed("grpo"), {"data.source": "mine.jsonl"}).check_given()
    parsed("grpo").check_given()
    parsed("ppo").check_given()


def test_prompts_have_the_tokens_that_are_asked_for():
    layout = Layout("plain", train_tokenizer([TALE], 320))
    random = np.random.RandomState(0)
    texts = {text_of(layout, 32, random) for _ in range(8)}
    assert len(texts) == 8 and {len(layout.prompt_ids([Turn("user", text)])) for text in texts} == {32}
    with pytest.raises(UserError, match=r"^--prompt_tokens 0: no prompt of so many was found in template plain"):
        text_of(layout, 0, random)


@pytest.mark.slow
@pytest.mark.parametrize("what, method", [("grpo", "full"), ("ppo", "lora"), ("ppo", "full")])
def test_an_iteration_is_measured_by_phase_and_compiles_nothing(tmp_path, what, method):
    config = parsed(what, *SMALL, "--method", method)
    config = config.opening(*opened_by_both(config, tmp_path))
    with turns.sides({"llama_jax": "llama_jax.benchmark:own_side"}) as (ours,):
        facts = ours.prepare([f"benchmark {what}", to_yaml(config)])
        measured = ours.take_turn(2)
    assert {len(prompt) for prompt in facts["prompts"]} == {32} and facts["trained"] > 0
    assert set(measured["seconds"]) == set(PHASES) and measured["compilations"] == 0
    assert sum(measured["seconds"].values()) == pytest.approx(ours.seconds[0], rel=0.2)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["grpo", "ppo"])
def test_both_sides_train_as_much(tmp_path, capfd, what):
    if importlib.util.find_spec("trl") is None:
        pytest.skip("needs trl")
    if what == "ppo" and Version(version("trl")) >= Version("1.13"):
        pytest.skip("needs trl 1.12.0")
    line = ("--config", f"benchmark_{what}", *SMALL, "--method", "full", "--turns", 1, "--iterations_per_turn", 1)
    assert call("benchmark", what, *line, "--output", tmp_path, "--json") == 0
    measured = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert measured["llama_jax"]["trained"] == measured["trl"]["trained"] and measured["samples"] == 32
    assert measured["compilations"] == 0 and measured["phase_seconds"]["trl"]["generation"] > 0
