"""The base of the toy task, which is trained where none is named."""

from dataclasses import replace
from pathlib import Path

from llama_jax.data.sources.opening import MANNERS
from llama_jax.pipeline.config import RlhfConfig
from llama_jax.runs.resuming import begun_config
from llama_jax.runs.starting import trained_first

_BASE = "runs/tiny"


def with_toy_base(config: RlhfConfig) -> RlhfConfig:
    """For the toy task, where no model is named, one that has begun to spell; it is trained if it is not there."""
    if config.sft_model or config.sft.model or MANNERS not in (config.data, config.sft.data.source):
        return config
    if not begun_config(str(Path(config.run_dir) / "sft")):
        trained_first("pretrain", "tiny/pretrain", _BASE)
    return replace(config, sft=replace(config.sft, model=_BASE))
