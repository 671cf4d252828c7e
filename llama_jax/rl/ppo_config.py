"""What learning from rewards with a critic can be told."""

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from llama_jax.checkpoints.config import StepChoice
from llama_jax.core.errors import UserError
from llama_jax.rl.config import PromptDataConfig, RewardLearningConfig, RewardsConfig, RolloutConfig
from llama_jax.rl.rewards.config import check_factor
from llama_jax.training.config import TrainingConfig


@dataclass(frozen=True)
class PpoRewardsConfig(RewardsConfig):
    """What completions are worth. What a reward model and the functions give is added up, normalised, and clipped."""

    functions: tuple[str, ...] = ()
    """Python functions, each FILE.py:NAME or one of those that come with llama_jax: `exact`, the completion is the
    record's `answer`; `last_number`, its last number is that of the `answer`; `phrases`, how many of the record's
    phrases `wanted` it has, less those `unwanted`. Empty: none; or `exact`, of the sums where there is no reward
    model."""
    model_weight: float = 1.0
    """Factor on what the reward model gives, which is on the scale that its run has measured: mean 0 and deviation 1
    over the answers that were held out there."""
    normalize: Literal["none", "running", "batch"] = "none"
    """Bring rewards to mean 0 and deviation 1: of all completions so far, or of those of the iteration."""
    clip: float | None = None
    """Bound on rewards, either way, once they are normalised (5 in DeepSpeed-Chat); null: none."""
    whiten: bool = False
    """Divide the rewards of all tokens of the iteration, penalties of the divergence included, by their deviation. The
    mean stays, as its sign says something."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_factor("rewards.model_weight", self.model_weight)
        if self.clip is not None and not 0 < self.clip < math.inf:
            raise UserError(f"rewards.clip: {self.clip} must be above 0 and finite")


@dataclass(frozen=True)
class PpoRolloutConfig(RolloutConfig):
    """What is sampled in each iteration. Of the settings of sampling only the length and the temperature may be
    changed: training has to compute the distribution that is sampled from."""

    temperature: float = 0.7
    """Divisor of the logits, in sampling and in training alike."""
    prompts: int = 64
    """Prompts of an iteration."""


@dataclass(frozen=True)
class KlConfig:
    """What holds the policy to the model that it began with: a penalty on the reward of each token, the estimated
    divergence of the two there."""

    coefficient: float = 0.05
    """Factor on the divergence, in reward per nat; 0: there is no penalty, and without a `target` no reference model
    either."""
    estimate: Literal["k1", "k3"] = "k1"
    """`k1`: the log-ratio, as in the papers; `k3` is never negative (http://joschu.net/blog/kl-approx.html)."""
    target: float | None = None
    """Nats of a whole completion that the coefficient is adapted to reach (arXiv:1909.08593, section 2.2: 6, from a
    coefficient of 0.15); null: it is fixed."""
    horizon: int = 10_000
    """Completions over which an adapted coefficient changes by a fifth, at the most."""

    def __post_init__(self) -> None:
        if not 0 <= self.coefficient < math.inf:
            raise UserError(f"kl.coefficient: {self.coefficient} must be at least 0 and finite")
        if self.target is not None and not 0 < self.target < math.inf:
            raise UserError(f"kl.target: {self.target} must be above 0 and finite")
        if self.target is not None and not self.coefficient:
            raise UserError(f"kl.coefficient: 0 stays 0, whatever kl.target ({self.target}) is")
        if self.horizon < 1:
            raise UserError(f"kl.horizon: {self.horizon} must be at least 1")


@dataclass(frozen=True)
class CriticConfig:
    """The model that says at each token what will come of it."""

    peak_learning_rate: float = 5e-6
    """Learning rate at the end of the warm-up. All else of its optimization is as `training` says."""
    begins: Literal["reward_model", "model"] = "reward_model"
    """What it begins as: the reward model, as in DeepSpeed-Chat; or, as always where there is none, the model of the
    run with a head of zeros."""
    warmup_iterations: int = 0
    """Iterations at the beginning in which it learns alone, and the policy stays as it is."""
    clip: float | None = 0.2
    """How far a value may move from the one before the iteration, in the loss; null: as far as it likes."""

    def __post_init__(self) -> None:
        if not 0 < self.peak_learning_rate < math.inf:
            raise UserError(f"critic.peak_learning_rate: {self.peak_learning_rate} must be above 0 and finite")
        if self.warmup_iterations < 0:
            raise UserError(f"critic.warmup_iterations: {self.warmup_iterations} must not be negative")
        if self.clip is not None and not self.clip > 0:
            raise UserError(f"critic.clip: {self.clip} must be above 0")


@dataclass(frozen=True)
class TextConfig:
    """Text that the policy goes on predicting while it learns, so that it does not forget it (PPO-ptx of InstructGPT,
    arXiv:2203.02155, equation 2)."""

    source: str | None = None
    """A file of text or of records with `text`, a glob, a directory, `tfds:…` or `hf:…`, as for pretraining; null: no
    such text."""
    coefficient: float = 27.8
    """Factor on the next-token loss of the text beside that of the policy."""
    max_documents: int = 10_000
    """Documents that are read, from the first on."""

    def __post_init__(self) -> None:
        if not 0 < self.coefficient < math.inf:
            raise UserError(f"text.coefficient: {self.coefficient} must be above 0 and finite")
        if self.max_documents < 1:
            raise UserError(f"text.max_documents: {self.max_documents} must be at least 1")


@dataclass(frozen=True)
class PpoConfig(RewardLearningConfig):
    """Train a model on rewards of what it samples, with a critic that says what to expect (PPO, arXiv:1707.06347, as in
    arXiv:1909.08593). Policy, critic and reward model are adapters over one base, the reference is the base alone; or,
    with method full, each is a model of its own. Run the same command again to resume."""

    run_dir: str = "runs/ppo"
    """Folder of the run: configuration, metrics, checkpoints, curves, a verdict."""
    reward_model: str | None = None
    """What scores completions: a run of `reward`, or an export of one. null: reward functions alone do."""
    reward_step: StepChoice | None = None
    """Checkpoint of a reward model that is a run; null: the newest that verifies."""
    rewards: PpoRewardsConfig = field(default_factory=PpoRewardsConfig)
    """What completions are worth."""
    rollout: PpoRolloutConfig = field(default_factory=PpoRolloutConfig)
    """What is sampled."""
    rollout_epochs: int = 4
    """How often the completions of an iteration are learned from."""
    kl: KlConfig = field(default_factory=KlConfig)
    """What holds the policy to the model that it began with."""
    critic: CriticConfig = field(default_factory=CriticConfig)
    """The critic."""
    discount: float = 1.0
    """Factor on what comes a token later (gamma)."""
    trace_decay: float = 0.95
    """How much of an advantage is of what came, and how much of what the critic says (lambda of generalised advantage
    estimation, arXiv:1506.02438)."""
    clip: float = 0.2
    """How far from 1 the ratio of the policies counts, either way."""
    dual_clip: float | None = None
    """Bound on the ratio at negative advantages, such as 3 (arXiv:1912.09729); null: none."""
    average_decay: float = 0.0
    """Decay, by iteration, of a running average of the policy (0.992 in DeepSpeed-Chat). It is then the average that is
    evaluated, saved as the model, and opened by other commands, and the policy itself is beside it; 0: no average."""
    text: TextConfig = field(default_factory=TextConfig)
    """Text to go on predicting."""
    training: TrainingConfig = field(
        default_factory=lambda: TrainingConfig(
            batch_size=64, peak_learning_rate=3e-6, schedule="linear", warmup_steps=0, weight_decay=0.0,
            final_learning_rate_fraction=0.0, epsilon=1e-5, spike_sigma=0.0, evaluate_every=50,
        )
    )  # fmt: skip
    """Optimization. Its `steps` are iterations, each with `rollout_epochs` times `minibatches` updates, which warm-up
    and schedule count."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("discount", "trace_decay"):
            if not 0 <= (value := getattr(self, name)) <= 1:
                raise UserError(f"--{name} {value}: must lie between 0 and 1")
        if not 0 < self.clip < 1:
            raise UserError(f"--clip {self.clip}: must lie between 0 and 1")
        if self.dual_clip is not None and not 1 + self.clip < self.dual_clip < math.inf:
            raise UserError(f"--dual_clip {self.dual_clip}: must be above 1 + clip, {1 + self.clip:g}, and finite")
        if not 0 <= self.average_decay < 1:
            raise UserError(f"--average_decay {self.average_decay}: must be at least 0 and below 1")
        if self.reward_model is None and not self.rewards.functions and self.data.source != PromptDataConfig.source:
            raise UserError("--reward_model: none given, and no rewards.functions; one of them must say what is good")
        if self.lora.modules_to_save and self.method == "lora":
            raise UserError("lora.modules_to_save: must be empty, as the reference is the base without the adapter")
        if self.critic.warmup_iterations >= self.training.steps:
            raise UserError(
                f"critic.warmup_iterations: {self.critic.warmup_iterations} leaves the policy none of the "
                f"{self.training.steps} iterations (training.steps)"
            )
        if self.reward_model is None and self.reward_step is not None:
            raise UserError(f"--reward_step {self.reward_step}: is of a --reward_model, and none is given")

    @property
    def judged_by(self) -> PpoRewardsConfig:
        """What completions are worth; of the sums, where nothing is named, whether they are right."""
        if self.reward_model is None and not self.rewards.functions:
            return replace(self.rewards, functions=("exact",))
        return self.rewards
