"""Steps whose memory is estimated and, by `record_memory.py`, compiled."""

import dataclasses
from typing import Any

from step_plans import step_plan

from llama_jax.core.config import MeshConfig
from llama_jax.model.config import SIZES, AdapterConfig, ComputeConfig, LlamaConfig
from llama_jax.planning.estimates.layout import StepPlan
from llama_jax.training.config import TrainingConfig


def _model(width: int, mlp_width: int, num_layers: int, heads: tuple[int, int, int], vocab_size: int) -> LlamaConfig:
    num_heads, num_kv_heads, head_size = heads
    return LlamaConfig(
        vocab_size, width, mlp_width, num_layers, num_heads, num_kv_heads, head_size, context_length=2**17
    )


MODELS = {
    "narrow": _model(2048, 5632, 16, (16, 16, 128), 32000),
    "deep": _model(2048, 5632, 48, (16, 16, 128), 32000),
    "wide": _model(4096, 11008, 8, (32, 32, 128), 32000),
    "grouped": _model(2048, 8192, 16, (32, 8, 64), 128256),
    "widest": _model(8192, 28672, 4, (64, 8, 128), 128256),
    "smollm2_135m": dataclasses.replace(SIZES["smollm2_135m"], context_length=2**17),
    "llama_7b": dataclasses.replace(SIZES["llama_7b"], context_length=2**17),
}
"""Widths of published models, but for the first ones with fewer layers."""

_CASES: tuple[dict[str, Any], ...] = (
    {"rows": 8, "length": 256},
    {"rows": 16},
    {"rows": 16, "length": 8192},
    {"rows": 64},
    {"rows": 64, "length": 512},
    {"rows": 64, "microbatches": 4},
    {"rows": 64, "microbatches": 8},
    {"rows": 8, "dtype": "float32"},
    {"rows": 16, "attention": "xla"},
    {"rows": 16, "attention": "blocked"},
    {"rows": 64, "remat": "attention"},
    {"rows": 16, "remat": "attention", "microbatches": 2},
    {"rows": 16, "remat": "dots"},
    {"rows": 32, "remat": "dots", "microbatches": 2},
    {"rows": 32, "remat": "dots", "topology": "v5p:2x2x2"},
    {"rows": 8, "remat": "none"},
    {"rows": 32, "remat": "none", "microbatches": 4},
    {"rows": 32, "remat": "none", "topology": "v5p:2x2x2"},
    {"rows": 32, "topology": "v4:2x2x2"},
    {"rows": 32, "mesh": (2, 4, 1, 1)},
    {"rows": 16, "mesh": (8, 1, 1, 1), "topology": "v5p:2x2x2"},
    {"rows": 32, "mesh": (1, 4, 1, 2)},
    {"rows": 8, "mesh": (1, 1, 1, 8)},
    {"rows": 8, "length": 8192, "mesh": (1, 4, 2, 1)},
    {"rows": 2, "length": 16384, "mesh": (1, 2, 4, 1), "remat": "dots"},
    {"rows": 16, "base": "bfloat16"},
    {"rows": 16, "base": "int8"},
    {"rows": 16, "base": "nf4"},
    {"rows": 16, "base": "nf4", "remat": "dots"},
    {"model": "deep", "rows": 16},
    {"model": "wide", "rows": 16},
    {"model": "wide", "rows": 16, "remat": "attention", "microbatches": 2},
    {"model": "wide", "rows": 8, "remat": "dots"},
    {"model": "wide", "rows": 8, "remat": "none"},
    {"model": "wide", "rows": 32, "topology": "v6e:2x4"},
    {"model": "wide", "rows": 64, "length": 256, "microbatches": 4, "base": "int8"},
    {"model": "wide", "rows": 16, "base": "nf4", "remat": "dots"},
    {"model": "wide", "rows": 16, "base": "bfloat16", "remat": "none"},
    {"model": "grouped", "rows": 16},
    {"model": "grouped", "rows": 8, "remat": "dots"},
    {"model": "widest", "rows": 16, "topology": "v5p:2x2x2"},
    {"model": "widest", "rows": 8, "mesh": (1, 2, 1, 4), "topology": "v5p:2x2x2"},
    {"model": "smollm2_135m", "rows": 64},
    {"model": "llama_7b", "rows": 32, "mesh": (1, 16, 1, 1), "topology": "v5e:4x4"},
)


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    topology: str
    plan: StepPlan


def _case(
    model: str = "narrow",
    rows: int = 8,
    length: int = 2048,
    microbatches: int = 1,
    mesh: tuple[int, int, int, int] = (1, 8, 1, 1),
    topology: str = "v5e:2x4",
    base: Any = None,
    **compute: Any,
) -> Case:
    settings = {"dtype": "bfloat16", "remat": "full", "attention": "splash"} | compute
    sizes = "x".join(map(str, mesh))
    name = " ".join(map(str, (model, topology, sizes, rows, length, microbatches, *settings.values(), base or "all")))
    data, fsdp, sequence, tensor = mesh
    plan = step_plan(
        MODELS[model],
        ComputeConfig(**settings),
        TrainingConfig(batch_size=rows, microbatches=microbatches),
        length,
        MeshConfig(data=data, fsdp=fsdp, sequence=sequence, tensor=tensor),
        None if base is None else AdapterConfig(),
        base or "float32",
    )
    return Case(name, topology, plan)


CASES = [_case(**case) for case in _CASES]
