"""Every command and what it can be told; the settings themselves lie with the parts they are about."""

from llama_jax.benchmarks.config import BenchmarkConfig
from llama_jax.checkpoints.config import ConvertConfig
from llama_jax.core.settings.parser import composed
from llama_jax.data.config import ShownConfig, TokenizerConfig
from llama_jax.data.preparation.config import PrepareConfig
from llama_jax.diagnosis.config import DoctorConfig
from llama_jax.evals.config import EvaluateConfig
from llama_jax.inference.config import GenerateConfig
from llama_jax.model.config import sized
from llama_jax.planning.config import PlannedConfig
from llama_jax.supervised.config import LoraConfig, PretrainConfig, SftConfig

_FINE_TUNING: dict[str, type] = {"sft": SftConfig, "lora": LoraConfig}

COMMANDS: dict[str, type] = {
    "pretrain": PretrainConfig,
    **_FINE_TUNING,
    "benchmark": composed(BenchmarkConfig, PretrainConfig),
    "convert": ConvertConfig,
    "doctor": DoctorConfig,
    "evaluate": EvaluateConfig,
    "generate": GenerateConfig,
    "plan": composed(PlannedConfig, PretrainConfig),
    **{
        f"plan {name}": composed(PlannedConfig, settings, f"Compile a run of {name} for hardware that is not here.")
        for name, settings in _FINE_TUNING.items()
    },
    "prepare": PrepareConfig,
    "preview": composed(ShownConfig, PretrainConfig),
    **{
        f"preview {name}": composed(ShownConfig, settings, f"Show what `{name}` will train on; nothing is written.")
        for name, settings in _FINE_TUNING.items()
    },
    "tokenizer": TokenizerConfig,
}
"""The commands, `python -m llama_jax.<name>`, and what each can be told. A second word is a first argument with which a
command takes other settings; without it, the first of them is meant that knows all settings of the config files."""

DEFAULT_CONFIGS = {"sft": "sft_starter", "lora": "lora_starter"}
"""Bundled configs of commands whose defaults are meant for real models, for a call without arguments."""

PRESETS = {"model.size": sized}
"""Settings that stand for a whole section."""
