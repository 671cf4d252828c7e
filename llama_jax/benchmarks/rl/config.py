"""What `benchmark grpo` and `benchmark ppo` can be told beside the settings of those commands."""

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, Protocol, cast, runtime_checkable

from llama_jax.core.errors import UserError
from llama_jax.model.config import AdapterConfig, ComputeConfig, LlamaConfig
from llama_jax.training.config import TrainingConfig


@runtime_checkable
class MeasuredRollout(Protocol):
    """What benchmarks read of `rollout`, a dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    max_new_tokens: int
    num_generations: int

    @property
    def completions(self) -> int: ...


@runtime_checkable
class MeasuredRewards(Protocol):
    """What benchmarks read of the settings of `grpo` and `ppo`."""

    seed: int
    model: str | None
    method: str
    model_dtype: str
    minibatches: int
    entropy_coefficient: float
    lora: AdapterConfig
    compute: ComputeConfig
    data: Any
    rewards: Any
    rollout: MeasuredRollout
    training: TrainingConfig


@dataclass(frozen=True)
class RlBenchmarkConfig:
    """What `benchmark grpo` and `benchmark ppo` share."""

    against: Literal["trl"] = "trl"
    """The other side."""
    architecture: LlamaConfig = field(
        default_factory=lambda: LlamaConfig(vocab_size=1024, width=256, mlp_width=704, num_heads=8, num_kv_heads=8)
    )
    """That of the models of random weights which are made where none are given."""
    prompt_tokens: int = 32
    """Tokens of each prompt. Each answer has `rollout.max_new_tokens`: nothing ends it early."""
    turns: int = 5
    """Turns of each side; the result is their median."""
    iterations_per_turn: int = 2
    """Iterations of a turn."""
    output: str = "runs/benchmark"
    """Directory for the result, `NAME.json`."""
    json: bool = False
    """Print one JSON object as the last line."""

    @property
    def what(self) -> str:
        """The command that is measured."""
        raise NotImplementedError

    @property
    def settings_of_trl(self) -> dict[str, Any]:
        """Those of the method, as TRL calls them."""
        raise NotImplementedError

    @property
    def trains_alike(self) -> bool:
        """As many parameters of the policy train on both sides."""
        return True

    @property
    def with_reward_model(self) -> bool:
        """The method has one."""
        return False

    @property
    def reward_path(self) -> str | None:
        """The reward model that is given."""
        return None

    @property
    def is_in_turns(self) -> bool:
        """See `BenchmarkConfig`."""
        return True

    @property
    def name(self) -> str:
        """Of the result."""
        return f"{self.what}_{self.run.method}_against_{self.against}"

    @property
    def run(self) -> MeasuredRewards:
        """The settings of the command, which this one has beside these (`core.settings.parser`)."""
        return cast(MeasuredRewards, self)

    def opening(self, model: str, reward: str | None) -> "RlBenchmarkConfig":
        """The same, of these models."""
        return replace(self, **{"model": model} | ({"reward_model": reward} if self.with_reward_model else {}))

    def __post_init__(self) -> None:
        run = self.run
        for name in ("prompt_tokens", "turns", "iterations_per_turn"):
            if (value := getattr(self, name)) < 1:
                raise UserError(f"--{name} {value}: must be at least 1")
        self._check(
            ("compute.dtype", run.compute.dtype, "float32"),
            ("model_dtype", run.model_dtype, "float32"),
            ("minibatches", run.minibatches, 1),
            ("training.microbatches", run.training.microbatches, 1),
            ("entropy_coefficient", run.entropy_coefficient, 0.0),
            ("rewards.missing_end_penalty", run.rewards.missing_end_penalty, 0.0),
            ("rewards.overlong_buffer", run.rewards.overlong_buffer, 0),
        )

    def check_given(self) -> None:
        """Refuse settings in whose place the sides have their own.

        Raises:
            UserError: names one.
        """
        functions = () if self.with_reward_model else ("exact",)
        for name, value, default in (
            ("data.source", self.run.data.source, "sums"),
            ("rewards.functions", self.run.rewards.functions, functions),
        ):
            if value != default:
                raise UserError(f"{name}: {value}, but benchmark {self.what} makes its own; leave it out")

    def _check(self, *needed: tuple[str, object, object]) -> None:
        for name, value, only in needed:
            if value != only:
                raise UserError(f"{name}: {value}, but --against {self.against} is for {only}")


@dataclass(frozen=True)
class GrpoBenchmarkConfig(RlBenchmarkConfig):
    """Measure `grpo` beside TRL's GRPOTrainer (extra `oracle`): the same model, prompts, numbers of tokens and updates
    on CPU in float32, each in a process of its own, in alternating turns. Takes every setting of `grpo`; `--config
    benchmark_grpo` is a size for it."""

    @property
    def what(self) -> str:
        """See the base."""
        return "grpo"

    @property
    def settings_of_trl(self) -> dict[str, Any]:
        """See the base."""
        run: Any = self.run
        return {"loss_type": run.loss, "beta": run.beta, "num_iterations": run.rollout_epochs}

    def __post_init__(self) -> None:
        super().__post_init__()
        run: Any = self.run
        self._check(("rollout.resampled", run.rollout.resampled, 0))
        if run.loss not in ("grpo", "dr_grpo", "dapo"):
            raise UserError(f"loss: {run.loss}, but --against {self.against} is for grpo, dr_grpo and dapo")


@dataclass(frozen=True)
class PpoBenchmarkConfig(RlBenchmarkConfig):
    """Measure `ppo`, with roles as adapters or, with method full, as models of their own, beside PPOTrainer of TRL
    1.12.0, the last that has it (extra `oracle`), always with four models: the same prompts, numbers of tokens and
    updates on CPU in float32, each in a process of its own, in alternating turns. Takes every setting of `ppo`;
    `--config benchmark_ppo` is a size for it."""

    @property
    def what(self) -> str:
        """See the base."""
        return "ppo"

    @property
    def settings_of_trl(self) -> dict[str, Any]:
        """See the base."""
        run: Any = self.run
        return {
            "num_ppo_epochs": run.rollout_epochs,
            "kl_coef": run.kl.coefficient,
            "kl_estimator": run.kl.estimate,
            "cliprange": run.clip,
            "cliprange_value": run.critic.clip,
            "gamma": run.discount,
            "lam": run.trace_decay,
            "whiten_rewards": run.rewards.whiten,
        }

    @property
    def trains_alike(self) -> bool:
        """See the base."""
        return self.run.method == "full"

    @property
    def with_reward_model(self) -> bool:
        """See the base."""
        return True

    @property
    def reward_path(self) -> str | None:
        """See the base."""
        run: Any = self.run
        return run.reward_model

    def __post_init__(self) -> None:
        super().__post_init__()
        run: Any = self.run
        self._check(
            ("rollout.num_generations", run.rollout.num_generations, 1),
            ("dual_clip", run.dual_clip, None),
            ("average_decay", run.average_decay, 0.0),
            ("text.source", run.text.source, None),
            ("critic.warmup_iterations", run.critic.warmup_iterations, 0),
            ("most_divergence", run.most_divergence, None),
        )
        if not run.kl.coefficient:
            raise UserError(f"kl.coefficient: 0, but --against {self.against} always has a reference")
        if run.critic.clip is None:
            raise UserError(f"critic.clip: null, but --against {self.against} always clips")
