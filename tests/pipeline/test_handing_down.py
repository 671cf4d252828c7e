"""What is said once reaches every stage, and what is said twice must agree."""

from dataclasses import replace
from pathlib import Path

import pytest

from llama_jax.config import COMMANDS, PRESETS
from llama_jax.core.errors import UserError
from llama_jax.core.settings.command_line import parse
from llama_jax.pipeline.config import RlhfConfig
from llama_jax.pipeline.handing_down import for_dry_run, stages_of

CONFIGS = Path(__file__).parents[2] / "configs"


def told(*arguments: str) -> RlhfConfig:
    return parse(RlhfConfig, ["--sft.model", "base", *arguments], command="rlhf", commands=COMMANDS, presets=PRESETS)


def test_what_is_said_once_reaches_every_stage():
    config = told("--run_dir", "R", "--seed", "7", "--template", "plain", "--split", "[2,4,4]", "--data", "manners")
    for number, (name, stage) in enumerate(stages_of(config)._asdict().items(), 1):
        assert (stage.run_dir, stage.seed, stage.data.template) == (f"R/{name}", 7, "plain")
        assert (stage.data.source, stage.data.split, stage.data.stage) == ("manners", (2.0, 4.0, 4.0), number)


def test_each_stage_begins_with_what_the_one_before_gave_or_with_a_model_of_elsewhere():
    sft, reward, ppo = stages_of(told("--run_dir", "R"))
    assert (sft.model, reward.model, ppo.model, ppo.reward_model) == ("base", "R/sft", "R/sft", "R/reward")
    _, reward, ppo = stages_of(told("--run_dir", "R", "--reward.model", "small", "--reward_model", "judge"))
    assert (reward.model, ppo.model, ppo.reward_model) == ("small", "R/sft", "judge")
    _, reward, ppo = stages_of(replace(told(), sft=RlhfConfig().sft, sft_model="tuned"))
    assert (reward.model, ppo.model) == ("tuned", "tuned")


def test_a_dry_run_needs_no_result_of_a_stage():
    config = told("--run_dir", "R")
    stages = for_dry_run(config, stages_of(config))
    assert [(stage.model, stage.dry_run) for stage in stages] == [("base", True)] * 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--seed", "7", "--reward.seed", "8"], "reward.seed: 8 contradicts --seed 7"),
        (["--data", "manners", "--ppo.data.source", "x"], "ppo.data.source: x contradicts --data manners"),
        (["--template", "plain", "--sft.data.template", "chatml"], "sft.data.template: chatml contradicts --template"),
        (["--ppo.run_dir", "elsewhere"], "ppo.run_dir: elsewhere is a folder of --run_dir"),
        (["--sft.dry_run"], "sft.dry_run: True is said once"),
        (["--ppo.model", "other"], "ppo.model: other must be sft"),
        (["--ppo.reward_model", "other"], "give another as --reward_model"),
        (["--sft_model", "tuned"], "--sft_model tuned: contradicts sft.model"),
        (["--split", "[1,1]"], "--split [1.0, 1.0]: needs three shares"),
        (["--comparison.prompts", "101"], "100 prompts are held out, and the comparison needs 101"),
    ],
)
def test_contradictions_are_refused_by_name(arguments: list[str], said: str) -> None:
    with pytest.raises(UserError) as refused:
        stages_of(told(*arguments))
    assert said in str(refused.value)


@pytest.mark.parametrize("name", ["tiny/rlhf", "rlhf_smollm2", "rlhf_7b", "chatllama_7b"])
def test_the_recipes_contradict_themselves_nowhere(name: str) -> None:
    config = parse(RlhfConfig, ["--config", name], command="rlhf", commands=COMMANDS, presets=PRESETS)
    assert len({stage.run_dir for stage in stages_of(config)}) == 3
