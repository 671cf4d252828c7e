"""Every command and what it can be told; the settings themselves lie with the parts they are about."""

import functools
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from llama_jax.benchmarks.config import (
    BenchmarkConfig,
    DpoBenchmarkConfig,
    RougeConfig,
)
from llama_jax.benchmarks.device.config import DeviceBenchmarkConfig
from llama_jax.benchmarks.preparing.config import PrepareBenchmarkConfig
from llama_jax.benchmarks.rl.config import GrpoBenchmarkConfig, PpoBenchmarkConfig
from llama_jax.checkpoints.config import ConvertConfig
from llama_jax.core.config import DistributedConfig
from llama_jax.core.settings.parser import composed
from llama_jax.data.config import (
    DataConfig,
    InstructionDataConfig,
    PreferenceDataConfig,
    ShownConfig,
    TokenizerConfig,
)
from llama_jax.data.preparation.config import PrepareConfig
from llama_jax.diagnosis.config import DoctorConfig
from llama_jax.evals.config import EvaluateConfig
from llama_jax.inference.config import ChatConfig, GenerateConfig
from llama_jax.inference.server.config import ServeConfig
from llama_jax.instruct.config import AskingConfig, ConversationsConfig, JudgeConfig, SelfInstructConfig
from llama_jax.model.config import sized
from llama_jax.pipeline.config import RlhfConfig
from llama_jax.pipeline.handing_down import stages_of
from llama_jax.planning.config import HardwareConfig, PlannedBenchmarkConfig, PlannedConfig, PlannedPipelineConfig
from llama_jax.rl.config import GrpoConfig, PromptDataConfig
from llama_jax.rl.ppo_config import PpoConfig
from llama_jax.runs.config import RunConfig
from llama_jax.supervised.config import LoraConfig, PretrainConfig, SftConfig
from llama_jax.supervised.preference_config import DpoConfig, KtoConfig, RewardConfig

_FROM_A_MODEL: dict[str, type] = {
    "sft": SftConfig,
    "lora": LoraConfig,
    "reward": RewardConfig,
    "dpo": DpoConfig,
    "kto": KtoConfig,
    "grpo": GrpoConfig,
    "ppo": PpoConfig,
}
"""Commands that train, and begin with a model."""

COMMANDS: dict[str, type] = {
    "pretrain": PretrainConfig,
    **_FROM_A_MODEL,
    "rlhf": RlhfConfig,
    "benchmark": composed(BenchmarkConfig, PretrainConfig),
    "benchmark all": DeviceBenchmarkConfig,
    "benchmark dpo": composed(DpoBenchmarkConfig, DpoConfig),
    "benchmark grpo": composed(GrpoBenchmarkConfig, GrpoConfig),
    "benchmark ppo": composed(PpoBenchmarkConfig, PpoConfig),
    "benchmark prepare": PrepareBenchmarkConfig,
    "benchmark rouge": RougeConfig,
    "chat": ChatConfig,
    "convert": ConvertConfig,
    "doctor": DoctorConfig,
    "evaluate": EvaluateConfig,
    "generate": GenerateConfig,
    "plan": composed(PlannedConfig, PretrainConfig),
    **{
        f"plan {name}": composed(PlannedConfig, settings, f"Compile a run of {name} for hardware that is not here.")
        for name, settings in _FROM_A_MODEL.items()
    },
    "plan benchmark": composed(PlannedBenchmarkConfig, composed(BenchmarkConfig, PretrainConfig)),
    "plan rlhf": composed(PlannedPipelineConfig, RlhfConfig),
    "prepare": PrepareConfig,
    "preview": composed(ShownConfig, PretrainConfig),
    **{
        f"preview {name}": composed(ShownConfig, settings, f"Show what `{name}` will train on; nothing is written.")
        for name, settings in _FROM_A_MODEL.items()
    },
    "self_instruct": SelfInstructConfig,
    "self_instruct conversations": ConversationsConfig,
    "self_instruct judge": JudgeConfig,
    "serve": ServeConfig,
    "tokenizer": TokenizerConfig,
}
"""The commands, `python -m llama_jax.<name>`, and what each can be told. A second word is a first argument with which a
command takes other settings; without it, the first of them is meant that knows all settings of the config files."""

DEFAULT_CONFIGS = {
    "sft": "sft_starter",
    "lora": "lora_starter",
    "reward": "reward_starter",
    "dpo": "dpo_starter",
    "kto": "kto_starter",
    "grpo": "tiny/grpo",
    "ppo": "tiny/ppo",
    "rlhf": "tiny/rlhf",
    "self_instruct": "self_instruct_starter",
}
"""Bundled configs of commands whose defaults are meant for real models, for a call without arguments."""

PRESETS = {"model.size": sized}
"""Settings that stand for a whole section."""

_MODELS = ("model", "sft_model", "reward_model", "source", "adapter", "adapters")
"""Settings that name models, one or a list of them."""


def check_paths(config: Any) -> None:
    """Refuse models and data of which nothing is there, and directories that cannot be made, before anything slow is
    imported and anything is written.

    Raises:
        UserError: names the setting.
    """
    if isinstance(config, BenchmarkConfig) and config.weights is not None:
        _check_model(config.weights, "--weights")
    if isinstance(config, HardwareConfig | BenchmarkConfig) or getattr(config, "dry_run", False):
        return  # need no data, and need not have a model
    from llama_jax.core.files import check_directory  # here and below: not for --help
    from llama_jax.data.sources.opening import check_source

    if isinstance(config, RunConfig | AskingConfig | RlhfConfig):
        check_directory(config.run_dir, f"--run_dir {config.run_dir}")
    for setting in _MODELS:
        named = getattr(config, setting, None)
        for path in (named,) if isinstance(named, str) else named if isinstance(named, tuple) else ():
            _check_model(path, f"--{setting}")
    for setting, source in _named_data(config):
        check_source(source, setting)
    if isinstance(config, RlhfConfig):
        for name, stage in stages_of(config)._asdict().items():
            for setting, source in _named_data(stage):
                check_source(source, f"{name}.{setting}")


def _check_model(path: str, setting: str) -> None:
    from llama_jax.checkpoints.finding import check_model  # imports JAX, which not every command does

    check_model(path, setting)


def supervised(config: Any, arguments: Sequence[str]) -> int | None:
    """Run a command that trains under a supervisor, if the config asks for one; gives the exit code. None: it does not,
    or there is one.

    Args:
        arguments: of `llama-jax`.
    """
    asks = isinstance(config, RunConfig | RlhfConfig) and config.supervise.restarts > 0 and not config.dry_run
    if not asks:
        return None
    from llama_jax.core.processes.supervisor import Supervisor  # here and below: not for --help
    from llama_jax.core.processes.watchdog import is_supervised, report_fault
    from llama_jax.core.run_directory import RunDirectory, saved_steps

    if is_supervised():
        return None
    distributed = config.distributed if isinstance(config, RunConfig) else DistributedConfig()
    supervisor = Supervisor(
        [sys.executable, "-m", "llama_jax", *arguments],
        config.supervise,
        distributed.heartbeat_seconds,
        saved=lambda: saved_steps(config.run_dir),
        report=functools.partial(report_fault, RunDirectory(config.run_dir).faults),
    )
    return supervisor.run()


def _named_data(config: Any) -> Iterator[tuple[str, str]]:
    """Settings that name data, with what they name, but for what comes with the package."""
    data = getattr(config, "data", None)
    if isinstance(data, DataConfig | InstructionDataConfig | PreferenceDataConfig | PromptDataConfig):
        setting = "data.mixture" if getattr(data, "mixture", ()) else "data.source"
        yield from ((setting, name) for name, _ in data.weighted_sources if name != type(data).source)
    for setting, name in (
        ("--data", data),
        ("--fewshot_data", getattr(config, "fewshot_data", None)),
        ("data.validation_source", getattr(data, "validation_source", None)),
        ("text.source", getattr(getattr(config, "text", None), "source", None)),
    ):
        if isinstance(name, str):
            yield setting, name
