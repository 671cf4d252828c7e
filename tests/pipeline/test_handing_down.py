"""What is said once reaches every stage, and what is said twice must agree."""

from dataclasses import replace
from typing import Any

import pytest
from sweeps import some

from llama_jax.config import COMMANDS, PRESETS
from llama_jax.core.errors import UserError
from llama_jax.core.settings.command_line import parse
from llama_jax.pipeline.config import RlhfConfig
from llama_jax.pipeline.handing_down import for_dry_run, stages_of
from llama_jax.supervised.config import SftConfig


def told(**changes: Any) -> RlhfConfig:
    """A config with other settings, `.` in their names written as `__`."""
    config = RlhfConfig(run_dir="R", sft=SftConfig(model="base"))
    for path, value in changes.items():
        config = changed(config, path.split("__"), value)
    return config


def changed(section: Any, path: list[str], value: Any) -> Any:
    first, *rest = path
    return replace(section, **{first: changed(getattr(section, first), rest, value) if rest else value})


def test_what_is_said_once_reaches_every_stage():
    config = told(seed=7, template="plain", split=(2.0, 4.0, 4.0), data="manners", supervise__step_seconds=60.0)
    for number, (name, stage) in enumerate(stages_of(config)._asdict().items(), 1):
        assert (stage.run_dir, stage.seed, stage.data.template) == (f"R/{name}", 7, "plain")
        assert (stage.data.source, stage.data.split, stage.data.stage) == ("manners", (2.0, 4.0, 4.0), number)
        assert stage.supervise == config.supervise


def test_each_stage_begins_with_what_the_one_before_gave_or_with_a_model_of_elsewhere():
    sft, reward, ppo = stages_of(told())
    assert (sft.model, reward.model, ppo.model, ppo.reward_model) == ("base", "R/sft", "R/sft", "R/reward")
    _, reward, ppo = stages_of(told(reward__model="small", reward_model="judge"))
    assert (reward.model, ppo.model, ppo.reward_model) == ("small", "R/sft", "judge")
    _, reward, ppo = stages_of(told(sft__model=None, sft_model="tuned"))
    assert (reward.model, ppo.model) == ("tuned", "tuned")


def test_a_dry_run_needs_no_result_of_a_stage():
    config = told()
    stages = for_dry_run(config, stages_of(config))
    assert [(stage.model, stage.dry_run) for stage in stages] == [("base", True)] * 3


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": 7, "reward__seed": 8}, "reward.seed: 8 contradicts --seed 7"),
        ({"data": "manners", "ppo__data__source": "x"}, "ppo.data.source: x contradicts --data manners"),
        ({"template": "plain", "sft__data__template": "chatml"}, "sft.data.template: chatml contradicts --template"),
        ({"ppo__run_dir": "elsewhere"}, "ppo.run_dir: elsewhere is a folder of --run_dir"),
        ({"sft__dry_run": True}, "sft.dry_run: True is said once"),
        ({"sft__supervise__restarts": 3}, "sft.supervise.restarts: 3 is said once, as --supervise.restarts"),
        ({"ppo__model": "other"}, "ppo.model: other must be sft"),
        ({"ppo__reward_model": "other"}, "give another as --reward_model"),
        ({"sft_model": "tuned"}, "--sft_model tuned: contradicts sft.model"),
        ({"split": (1.0, 1.0)}, "--split [1.0, 1.0]: needs three shares above 0"),
        ({"split": (0.0, 1.0, 1.0)}, "--split [0.0, 1.0, 1.0]: needs three shares above 0"),
        ({"comparison__prompts": 101}, "100 prompts are held out, and the comparison needs 101"),
    ],
)
def test_contradictions_are_refused_by_name(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as refused:
        stages_of(told(**changes))
    assert said in str(refused.value)


@pytest.mark.parametrize("name", some(["tiny/rlhf", "rlhf_smollm2", "rlhf_7b", "chatllama_7b"], {"tiny/rlhf"}))
def test_the_recipes_contradict_themselves_nowhere(name: str) -> None:
    config = parse(RlhfConfig, ["--config", name], command="rlhf", commands=COMMANDS, presets=PRESETS)
    assert len({stage.run_dir for stage in stages_of(config)}) == 3
