"""What is needed hours later only is looked at before."""

from dataclasses import replace

import pytest

from llama_jax.core.errors import UserError
from llama_jax.pipeline.beginning import check_last_stage
from llama_jax.pipeline.config import RlhfConfig


def judged_by(judge: str) -> RlhfConfig:
    config = RlhfConfig(data="manners")
    return replace(config, comparison=replace(config.comparison, judge=judge))


@pytest.mark.parametrize(
    ("judge", "message"),
    [
        ("phrase", "'phrase' is neither FILE.py:NAME nor one of exact"),
        ("FOLDER/own.py:polite", ".*own.py:polite: has no function 'polite'; there are right"),
    ],
)
def test_a_judge_is_opened_before_any_stage_is_made(judge, message, tmp_path) -> None:
    (tmp_path / "own.py").write_text("def right(completions, **rest):\n    return [1.0 for _ in completions]\n")
    with pytest.raises(UserError, match=f"^comparison.judge: {message}"):
        check_last_stage(judged_by(judge.replace("FOLDER", str(tmp_path))))


def test_prompts_are_named() -> None:
    check_last_stage(judged_by("phrases"))
    with pytest.raises(UserError, match=r"^ppo.data.source: none given, and no --data; name the prompts of PPO"):
        check_last_stage(replace(judged_by("phrases"), data=None))
