"""What the whole of RLHF can be told."""

import math
from dataclasses import dataclass, field
from typing import Literal

from llama_jax.core.config import SuperviseConfig
from llama_jax.core.errors import UserError
from llama_jax.data.config import Template
from llama_jax.rl.ppo_config import PpoConfig
from llama_jax.supervised.config import SftConfig
from llama_jax.supervised.preference_config import RewardConfig

SFT, REWARD = "sft", "reward"
"""What `reward.model`, `ppo.model` and `ppo.reward_model` say where they mean the result of a stage."""


@dataclass(frozen=True)
class ComparisonConfig:
    """How the tuned model is compared with the one that it began as: both answer the same held-out prompts of `ppo`."""

    prompts: int | None = None
    """Prompts to answer, the first of those that `ppo.data.validation_examples` holds out; null: all of them."""
    judge: str | None = None
    """A Python function that says which answer is better, and that nothing was trained on: FILE.py:NAME or one that
    comes with llama_jax, called as reward functions are. null: the reward model alone compares."""
    temperature: float | None = None
    """Of the answers; null: that of `ppo.rollout`. 0: the most likely ones."""
    samples: int = 8
    """Prompts whose answers the report shows."""
    timeout_seconds: float = 60.0
    """Wall time that a call of the judge may take."""

    def __post_init__(self) -> None:
        for name, least in (("prompts", 2), ("samples", 0)):
            if (value := getattr(self, name)) is not None and value < least:
                raise UserError(f"comparison.{name}: {value} must be at least {least}")
        if not 0 < self.timeout_seconds < math.inf:
            raise UserError(f"comparison.timeout_seconds: {self.timeout_seconds} must be above 0 and finite")
        if self.temperature is not None and not 0 <= self.temperature < math.inf:
            raise UserError(f"comparison.temperature: {self.temperature} must be at least 0 and finite")


@dataclass(frozen=True)
class RlhfConfig:
    """Fine-tune a model on answers, train a reward model on preferences, then learn from its rewards by PPO: three runs
    in one directory, and a report of what came of them. Run the same command again to resume."""

    run_dir: str = "runs/rlhf"
    """Folder with the runs `sft`, `reward` and `ppo`, `report.html` and `verdict.json`."""
    dry_run: bool = False
    """Lay each stage out over its mesh, compile it, print parameters, bytes and FLOPs, and stop; needs no data."""
    sft_model: str | None = None
    """Model to take as the result of SFT, instead of making one."""
    reward_model: str | None = None
    """Run of `reward`, or an export of one, to take instead of training one."""
    seed: int | None = None
    """Seed of all stages; null: each has its own."""
    size: str | None = None
    """Published size of the models of all stages, such as llama_7b; null: as each says."""
    tokenizer: str | None = None
    """Tokenizer file of all stages, for models that do not carry their own; null: as each says."""
    data: str | None = None
    """Data of all stages, as each has them in `data.source`; null: each has its own."""
    split: tuple[float, ...] = ()
    """Shares of the prompts for the three stages, such as [2, 4, 4], so that no prompt is in two of them; empty: each
    stage takes what its own `data` says."""
    template: Literal["auto", Template] | None = None
    """How all stages lay a conversation out; null: as each says."""
    template_date: str | None = None
    """Date of all stages, such as 2026-11-27, for a chat template that asks for the clock; null: as each says."""
    sft: SftConfig = field(default_factory=SftConfig)
    """The first stage, as for the command `sft`; its `model` is the base of all."""
    reward: RewardConfig = field(default_factory=lambda: RewardConfig(model=SFT))
    """The second, as for the command `reward`; its `model` may be another than what `sft` made."""
    ppo: PpoConfig = field(default_factory=lambda: PpoConfig(model=SFT, reward_model=REWARD))
    """The third, as for the command `ppo`."""
    comparison: ComparisonConfig = field(default_factory=ComparisonConfig)
    """How its result is judged."""
    supervise: SuperviseConfig = field(default_factory=SuperviseConfig)
    """What is done about faults, in all stages."""

    def __post_init__(self) -> None:
        if self.split and (len(self.split) != 3 or not all(0 < share < math.inf for share in self.split)):
            raise UserError(f"--split {list(self.split)}: needs three shares above 0, for sft, reward and ppo")
        held_out, asked = self.ppo.data.validation_examples, self.comparison.prompts
        if max(2, asked or 0) > held_out:
            raise UserError(
                f"ppo.data.validation_examples: {held_out} prompts are held out, and the comparison needs {asked or 2}"
            )
