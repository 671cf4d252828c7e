"""What is needed hours later only is looked at before."""

from dataclasses import replace

import pytest

from llama_jax.core.errors import UserError
from llama_jax.pipeline.beginning import check_last_stage
from llama_jax.pipeline.config import RlhfConfig


def config_of(judge: str, function: str) -> RlhfConfig:
    config = RlhfConfig(data="manners")
    rewards = replace(config.ppo.rewards, functions=(function,))
    return replace(
        config,
        comparison=replace(config.comparison, judge=judge),
        ppo=replace(config.ppo, rewards=rewards),
    )


@pytest.mark.parametrize(
    ("judge", "function", "message"),
    [
        ("phrase", "exact", "comparison.judge: 'phrase' is neither FILE.py:NAME nor one of exact"),
        (
            "FOLDER/own.py:polite",
            "exact",
            "comparison.judge: .*own.py:polite: .*has no function 'polite'; there",
        ),
        ("phrases", "FOLDER/none.py:right", "ppo.rewards.functions: .*none.py:right: there is no file"),
    ],
)
def test_a_judge_and_rewards_are_opened_before_any_stage_is_made(judge, function, message, tmp_path) -> None:
    (tmp_path / "own.py").write_text("def right(completions, **rest):\n    return [1.0 for _ in completions]\n")
    judge, function = (name.replace("FOLDER", str(tmp_path)) for name in (judge, function))
    with pytest.raises(UserError, match=f"^{message}"):
        check_last_stage(config_of(judge, function))


def test_prompts_are_named() -> None:
    config = config_of("phrases", "exact")
    with pytest.raises(UserError, match=r"^ppo.data.source: none given, and no --data; name the prompts of PPO"):
        check_last_stage(replace(config, data=None))


def test_functions_that_are_there_are_found_good(tmp_path) -> None:
    check_last_stage(config_of("phrases", "exact"))
