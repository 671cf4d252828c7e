"""The models of a comparison of learning from rewards that are not given: random weights, made by our own commands in
processes of their own, so that neither side's memory is touched."""

import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from llama_jax.benchmarks.results import say
from llama_jax.benchmarks.rl.config import RlBenchmarkConfig
from llama_jax.core.errors import UserError

_ONE_STEP = (
    *("--training.steps", "1", "--training.warmup_steps", "0", "--training.warmup_fraction", "null"),
    *("--training.peak_learning_rate", "1e-9"),
)
"""Of which nothing is learned."""


def opened_by_both(config: RlBenchmarkConfig, folder: Path) -> tuple[str, str | None]:
    """Paths of the policy, and of the reward model where the method has one; those that the config does not name are
    made in a folder.

    Raises:
        UserError: one could not be made.
    """
    run = config.run
    model, reward = (None if path is None else _absolute(path) for path in (run.model, config.reward_path))
    if model is None:
        say(config, "no --model given: making one of random weights first")
        model = str(folder / "model")
        sizes = [part for name, value in asdict(config.architecture).items() for part in _setting(name, value)]
        data = ("--data.sequence_length", "64", "--training.batch_size", "16")
        _make(["pretrain", *sizes, *data, *_ONE_STEP, "--run_dir", model])
    if config.with_reward_model and reward is None:
        say(config, "no --reward_model given: making one of random weights first")
        reward = str(folder / "reward")
        modules = f"[{', '.join(run.lora.target_modules)}]"
        kind = ("--method", run.method, "--lora.rank", str(run.lora.rank), "--lora.target_modules", modules)
        _make(["reward", "--model", model, *kind, "--epochs", "null", *_ONE_STEP, "--run_dir", reward])
    return model, reward


def _absolute(path: str) -> str:
    """The sides start in a directory of their own; what is no path is the name of a model elsewhere."""
    return str(Path(path).resolve()) if Path(path).exists() else path


def _setting(name: str, value: object) -> tuple[str, ...]:
    return () if value is None else (f"--model.{name}", str(value).lower())


def _make(command: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", f"llama_jax.{command[0]}", *command[1:]], stdout=subprocess.DEVNULL)
    if done.returncode:
        raise UserError(f"the model of the comparison could not be made by {command[0]}; see above")
