"""What each stage is told: its own section, what is said once for all, and where the others' results are."""

from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from llama_jax.core.config import SuperviseConfig
from llama_jax.core.errors import UserError
from llama_jax.pipeline.config import REWARD, SFT, RlhfConfig
from llama_jax.rl.ppo_config import PpoConfig
from llama_jax.supervised.config import SftConfig
from llama_jax.supervised.preference_config import RewardConfig

Section = TypeVar("Section", SftConfig, RewardConfig, PpoConfig)

_SHARED = {
    "seed": "seed",
    "size": "size",
    "tokenizer": "tokenizer",
    "data": "data.source",
    "split": "data.split",
    "template": "data.template",
    "template_date": "data.template_date",
}
"""Settings that may be said once, and what they are called in the sections."""
_OWN = {
    "run_dir": "is a folder of --run_dir; give that",
    "dry_run": "is said once, as --dry_run",
    **{f"supervise.{each.name}": f"is said once, as --supervise.{each.name}" for each in fields(SuperviseConfig)},
    "data.stage": "follows from --split; give that",
}
"""Settings of the sections that nobody may set, and why."""
_DEFAULTS = {each.name: each.default_factory() for each in fields(RlhfConfig) if callable(each.default_factory)}


class Stages(NamedTuple):
    """The settings of the three runs."""

    sft: SftConfig
    reward: RewardConfig
    ppo: PpoConfig


def stages_of(config: RlhfConfig) -> Stages:
    """The settings of each stage, those of a stage that is not made among them.

    Raises:
        UserError: a section contradicts what is said for all, or says what is not its own.
    """
    sft, reward, ppo = config.sft, config.reward, config.ppo
    if config.sft_model is not None and sft.model is not None:
        raise UserError(f"--sft_model {config.sft_model}: contradicts sft.model, the base of a stage that is not made")
    if ppo.model != SFT:
        raise UserError(f"ppo.model: {ppo.model} must be {SFT}, what that stage gives; give another as --sft_model")
    if ppo.reward_model != REWARD:
        raise UserError(
            f"ppo.reward_model: {ppo.reward_model} must be {REWARD}, what that stage gives; give another as "
            "--reward_model"
        )
    tuned = config.sft_model or _run_dir(config, "sft")
    of_reward = tuned if reward.model in (SFT, None) else reward.model
    return Stages(
        _told(config, "sft", 1, sft),
        replace(_told(config, "reward", 2, reward), model=of_reward),
        replace(
            _told(config, "ppo", 3, ppo), model=tuned, reward_model=config.reward_model or _run_dir(config, "reward")
        ),
    )


def for_dry_run(config: RlhfConfig, stages: Stages) -> Stages:
    """The stages as they can be compiled before there is anything to begin with: each from the base."""
    sft, reward, ppo = stages
    base = config.sft_model or sft.model
    begins_with_sft = config.reward.model in (SFT, None)
    return Stages(
        replace(sft, dry_run=True),
        replace(reward, dry_run=True, model=base if begins_with_sft else reward.model),
        replace(ppo, dry_run=True, model=base),
    )


def _run_dir(config: RlhfConfig, name: str) -> str:
    return str(Path(config.run_dir) / name) if "://" not in config.run_dir else f"{config.run_dir.rstrip('/')}/{name}"


def _told(config: RlhfConfig, name: str, number: int, section: Section) -> Section:
    default = _DEFAULTS[name]
    for path, why in _OWN.items():
        if (value := _get(section, path)) != _get(default, path):
            raise UserError(f"{name}.{path}: {value} {why}")
    for path, value in _said(config):
        if not _has(section, path):
            continue
        if (given := _get(section, path)) not in (_get(default, path), value):
            said = next(shared for shared, its in _SHARED.items() if its == path)
            raise UserError(f"{name}.{path}: {_shown(given)} contradicts --{said} {_shown(value)}; say one of them")
        section = _with(section, path, value, **({"stage": number} if path == "data.split" else {}))
    return replace(section, run_dir=_run_dir(config, name), supervise=config.supervise)


def _said(config: RlhfConfig) -> Iterator[tuple[str, Any]]:
    """What is said for all stages, by its name in them."""
    for shared, path in _SHARED.items():
        if (value := getattr(config, shared)) not in (None, ()):
            yield path, value


def _has(section: Any, path: str) -> bool:
    first, _, rest = path.partition(".")
    return hasattr(section, first) and (not rest or _has(getattr(section, first), rest))


def _get(section: Any, path: str) -> Any:
    for name in path.split("."):
        section = getattr(section, name, None)
    return section


def _with(section: Section, path: str, value: Any, **more: Any) -> Section:
    first, _, rest = path.partition(".")
    if rest:
        return replace(section, **{first: replace(getattr(section, first), **{rest: value}, **more)})
    return replace(section, **{first: value}, **more)


def _shown(value: Any) -> str:
    return str(list(value)) if isinstance(value, tuple) else str(value)
