"""What a pipeline begins with: the base of the toy task, which is trained where none is named, prompts and functions
that are there, and an adapter that is taken as the result of SFT, merged."""

from dataclasses import replace
from pathlib import Path

from etils import epath

from llama_jax.core.errors import UserError
from llama_jax.data.sources.opening import MANNERS, errors_of
from llama_jax.pipeline.comparison import judge_of
from llama_jax.pipeline.config import RlhfConfig
from llama_jax.rl.config import PromptDataConfig
from llama_jax.rl.rewards.functions import RewardFunction
from llama_jax.runs.resuming import begun_config
from llama_jax.runs.starting import merged, trained_first

_BASE = "runs/tiny"


def with_toy_base(config: RlhfConfig) -> RlhfConfig:
    """For the toy task, where no model is named, one that has begun to spell; it is trained if it is not there."""
    if config.sft_model or config.sft.model or MANNERS not in (config.data, config.sft.data.source):
        return config
    if not begun_config(str(Path(config.run_dir) / "sft")):
        trained_first("pretrain", "tiny/pretrain", _BASE)
    return replace(config, sft=replace(config.sft, model=_BASE))


def check_last_stage(config: RlhfConfig) -> None:
    """Look at what is needed after hours of training only: that there are prompts, and functions that say what is good.

    Raises:
        UserError: no prompts are named, or a function cannot be opened.
    """
    if config.data is None and config.ppo.data.source == PromptDataConfig.source:
        raise UserError(
            "ppo.data.source: none given, and no --data; name the prompts of PPO, or begin with the settings of the "
            "toy task: --config tiny/rlhf"
        )
    judge_of(config.comparison)
    with errors_of("ppo.rewards.functions", instead_of="rewards.functions"):
        for each in config.ppo.rewards.each:
            RewardFunction(each).check()


def with_merged_sft(config: RlhfConfig) -> RlhfConfig:
    """Where an adapter is taken as the result of SFT, with the two merged in the run directory, once: reward model and
    policy are then adapters over the same base."""
    if config.sft_model is None:
        return config
    target = epath.Path(config.run_dir) / "sft_merged"
    return replace(
        config, sft_model=merged(config.sft_model, "--sft_model", target, lambda line: print(line, flush=True))
    )
