"""What a pipeline begins with: the base of the toy task, which is trained where none is named, prompts and a judge
that are there, an adapter that is taken as the result of SFT, merged, and a look at all stages before hours go into the
first."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from etils import epath

from llama_jax.checkpoints.weight_reading import open_weights
from llama_jax.core.errors import UserError
from llama_jax.data.sources.opening import MANNERS
from llama_jax.pipeline.comparison import judge_of
from llama_jax.pipeline.config import RlhfConfig
from llama_jax.pipeline.handing_down import Stages, for_dry_run
from llama_jax.rl.beforehand import check_beforehand
from llama_jax.rl.config import PromptDataConfig
from llama_jax.rl.prompts import ARGUMENTS
from llama_jax.runs.resuming import begun_config
from llama_jax.runs.starting import merged, path_of, tokenizer_of, trained_first

_BASE = "runs/tiny"


def with_toy_base(config: RlhfConfig) -> RlhfConfig:
    """For the toy task, where no model is named, one that has begun to spell; it is trained if it is not there."""
    if config.sft_model or config.sft.model or MANNERS not in (config.data, config.sft.data.source):
        return config
    if not begun_config(str(Path(config.run_dir) / "sft")):
        trained_first("pretrain", "tiny/pretrain", _BASE)
    return replace(config, sft=replace(config.sft, model=_BASE))


def check_last_stage(config: RlhfConfig) -> None:
    """Look at what is needed after hours of training only, and needs no model: that there are prompts, and a judge.

    Raises:
        UserError: no prompts are named, or the judge cannot be opened.
    """
    if config.data is None and config.ppo.data.source == PromptDataConfig.source:
        raise UserError(
            "ppo.data.source: none given, and no --data; name the prompts of PPO, or begin with the settings of the "
            "toy task: --config tiny/rlhf"
        )
    judge_of(config.comparison)


def with_merged_sft(config: RlhfConfig) -> RlhfConfig:
    """Where an adapter is taken as the result of SFT, with the two merged in the run directory, once: reward model and
    policy are then adapters over the same base."""
    if config.sft_model is None:
        return config
    target = epath.Path(config.run_dir) / "sft_merged"
    return replace(
        config, sft_model=merged(config.sft_model, "--sft_model", target, lambda line: print(line, flush=True))
    )


def check_stages(config: RlhfConfig, stages: Stages, builds: Mapping[str, Callable[[Any], object]]) -> None:
    """Refuse before the first stage what a later one would refuse when it begins: rows, meshes and contexts that do not
    fit the model, prompts that do not fit the rows of PPO, a reward model of elsewhere that does not read what is
    written, and functions that cannot be called. Of runs that have begun nothing is asked.

    Args:
        builds: That of each command, by the name of its stage.

    Raises:
        UserError: names the stage and its setting.
    """
    # As long as there is no result of SFT, its base stands for it, with the template that it will be taught.
    is_taught = config.sft_model is not None or bool(begun_config(stages.sft.run_dir))
    template = "auto" if is_taught else stages.sft.data.template
    known = stages if is_taught else for_dry_run(config, stages)
    elsewhere = {"sft": config.sft_model, "reward": config.reward_model}
    for name, stage in known._asdict().items():
        if elsewhere.get(name) is None and not begun_config(stage.run_dir):
            with _of_stage(name):
                builds[name](stage)
    ppo = known.ppo
    if not begun_config(ppo.run_dir):
        with _of_stage("ppo"):
            path = path_of(ppo)
            weights = open_weights(path, step=ppo.step, say=lambda line: None)
            tokenizer = tokenizer_of(ppo, weights, path, ppo.data.template_date)
            data = check_beforehand(ppo, weights.config, tokenizer, template, config.reward_model)
        judge_of(config.comparison, (*ARGUMENTS, *data.fields))


@contextlib.contextmanager
def _of_stage(name: str) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise UserError(f"stage {name}: {error}") from None
