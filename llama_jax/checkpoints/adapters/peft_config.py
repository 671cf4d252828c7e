"""`adapter_config.json` of Hugging Face PEFT (its version 0.21): what in it means something to a LLaMA, and what is
refused because it would change the mathematics.

PEFT reads names of modules as regular expressions. A stranger's are not run here, as one can be written that never
ends; where the configuration has one, the tensors themselves say which modules are adapted."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_jax.checkpoints.formats.directories import member
from llama_jax.core.errors import UserError
from llama_jax.core.json_files import JsonFields, read_json, shown
from llama_jax.model import paths

PEFT_CONFIG = "adapter_config.json"
PREFIX = "base_model.model."
"""How the name of every tensor begins, before the name that transformers gives the module."""
SAVED_NAMES: Mapping[str, str] = {paths.TABLE: "embed_tokens", paths.HEAD: "lm_head", paths.SCORE: "score"}
"""PEFT's names, in `modules_to_save`, of matrices that may be trained whole, by path in our tree."""
TASKS = {False: "CAUSAL_LM", True: "SEQ_CLS"}
"""PEFT's `task_type`, by whether there is a scalar head."""
WAY_OUT = "merge it in PEFT (merge_and_unload) and open what that gives"
"""How a message ends that names a feature of PEFT which is not supported here."""

_SAVED_MODULES = {"embed_tokens": "model.embed_tokens", "lm_head": "lm_head", "score": "score"}
_CLASSIFIER = "classifier"
"""What PEFT lists beside `score`, as other architectures call their head."""
_LONGEST_CONFIG = 2**20
_INERT = (
    *("auto_mapping", "base_model_name_or_path", "inference_mode", "lora_dropout", "peft_version", "revision"),
    *("corda_config", "eva_config", "loftq_config", "lora_ga_config", "runtime_config", "velora_config"),
    *("ensure_weight_tying", "fan_in_fan_out", "layers_pattern", "megatron_core", "qalora_group_size", "task_type"),
)
"""Fields that do not change what a trained adapter of a LLaMA computes (`fan_in_fan_out` is for GPT-2's Conv1D)."""
_READ = (
    *("peft_type", "r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "modules_to_save"),
    *("bias", "exclude_modules", "init_lora_weights", "layers_to_transform", "target_modules"),
)
_PLAIN_KEY = re.compile(r"\^?(?:\w|\.|\\\.)+\$?")


@dataclass(frozen=True)
class PeftConfig:
    """The fields that count, checked one by one."""

    where: str
    base_name: str | None
    rank: int
    alpha: float
    dropout: float
    rank_stabilized: bool
    dora: bool
    ranks: Mapping[str, Any]
    """`rank_pattern`: other ranks, by module."""
    alphas: Mapping[str, Any]
    """`alpha_pattern`."""
    targets: tuple[str, ...] | None
    """Names of the modules that are adapted, each a whole path or what it ends with; None: all for which there are
    tensors."""
    excluded: tuple[str, ...]
    layers: tuple[int, ...] | None
    """Layers that are adapted; None: all."""
    saved_modules: tuple[str, ...]
    """Of `SAVED_NAMES`, PEFT's."""
    scores: bool
    """Whether it makes a classifier of its base: with one label, a reward model."""
    tied: bool
    """Whether the head follows the embedding where one of them was trained (`ensure_weight_tying`)."""

    def targeted(self, module: str, layer: int) -> bool | None:
        """Whether a module, `model.layers.0.self_attn.q_proj`, is adapted; None: the tensors say."""
        if self.targets is None:
            return None
        if _names(module, self.excluded):
            return False
        return module in self.targets or (
            _names(module, self.targets) and (self.layers is None or layer in self.layers)
        )

    def rank_of(self, module: str) -> int | None:
        """The rank that the configuration announces for a module; None where an expression decides."""
        if any(not _PLAIN_KEY.fullmatch(key) for key in self.ranks):
            return None
        return _lookup(module, self.ranks, self.rank)

    def alpha_of(self, module: str) -> float:
        """The alpha of a module."""
        for key in self.alphas:
            if not _PLAIN_KEY.fullmatch(key):
                raise UserError(f"{self.where}: alpha_pattern has {shown(key)}; write names, no expression is run here")
        return float(_lookup(module, self.alphas, self.alpha))


def read_peft_config(directory: Path) -> PeftConfig:
    """Check the configuration of a directory that `PeftModel.save_pretrained` made.

    Raises:
        UserError: it is broken, or asks for something else than low-rank adaptation of the Linears in the blocks.
    """
    path = member(directory, PEFT_CONFIG)
    values = read_json(path, max_bytes=_LONGEST_CONFIG)
    where, fields = str(path), JsonFields(values, str(path))
    fields.one_of("peft_type", ("LORA",), None)
    scores = fields.one_of("task_type", TASKS.values(), TASKS[False]) == TASKS[True]
    fields.one_of("bias", ("none",), "none")
    # PiSSA, OLoRA, CorDA, LoRA-GA and LoftQ also change the base, which the file then does not tell.
    fields.one_of("init_lora_weights", (True, False, "gaussian", "eva", "orthogonal"), True)
    for name, value in values.items():
        if name not in _READ + _INERT and value not in (None, False, [], {}):
            raise UserError(f"{where}: {name} is {shown(value)}, which is not supported; {WAY_OUT}")
    base = fields.checked("base_model_name_or_path", "", lambda value: isinstance(value, str), "text")
    targets, excluded = _modules(fields, "target_modules"), _modules(fields, "exclude_modules")
    if values.get("target_modules") is None:
        raise UserError(f"{where}: lacks target_modules")
    is_expression = isinstance(values.get("exclude_modules"), str)
    return PeftConfig(
        where=where,
        base_name=base or None,
        rank=fields.whole("r", 8),
        alpha=fields.number("lora_alpha", 8.0),
        dropout=float(fields.checked("lora_dropout", 0.0, _is_dropout, "a number from 0 to less than 1")),
        rank_stabilized=fields.flag("use_rslora", False),
        dora=fields.flag("use_dora", False),
        ranks=_pattern(fields, "rank_pattern", lambda value: type(value) is int and 0 < value < 2**31),
        alphas=_pattern(fields, "alpha_pattern", lambda value: type(value) in (int, float) and 0 < value < 1e30),
        targets=None if is_expression else targets,
        excluded=excluded or (),
        layers=_layers(fields),
        saved_modules=_saved_modules(fields),
        scores=scores,
        tied=fields.flag("ensure_weight_tying", False),
    )


def _saved_modules(fields: JsonFields) -> tuple[str, ...]:
    """Which matrices were trained whole; `ensure_weight_tying` writes the whole path, beside the name or alone."""
    given = [name for name in _modules(fields, "modules_to_save") or () if name != _CLASSIFIER]
    for name in given:
        if not any(_names(module, (name,)) for module in _SAVED_MODULES.values()):
            known = ", ".join(_SAVED_MODULES)
            reason = f"only {known} can be trained whole here, so {WAY_OUT}"
            raise UserError(f"{fields.where}: modules_to_save has {shown(name)}; {reason}")
    return tuple(short for short, module in _SAVED_MODULES.items() if _names(module, given))


def _modules(fields: JsonFields, field: str) -> tuple[str, ...] | None:
    """A list of names; None for a missing field and for an expression, which is one text."""
    value = fields.values.get(field)
    if value == "all-linear" and field == "target_modules":
        return ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    if value is None or (isinstance(value, str) and field != "modules_to_save"):
        return None
    return tuple(fields.checked(field, None, lambda names: _is_list_of(str, names), "a list of names"))


def _layers(fields: JsonFields) -> tuple[int, ...] | None:
    def fits(value: Any) -> bool:
        return type(value) is int or _is_list_of(int, value)

    value = fields.checked("layers_to_transform", [], fits, "a list of layers")
    return (value,) if type(value) is int else tuple(value) or None


def _is_list_of(kind: type, value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is kind for item in value)


def _is_dropout(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < 1


def _pattern(fields: JsonFields, field: str, fits: Callable[[Any], bool]) -> Mapping[str, Any]:
    def fit(value: Any) -> bool:
        return not value or (isinstance(value, dict) and all(map(fits, value.values())))

    return fields.checked(field, {}, fit, "an object of modules and positive numbers") or {}


def _names(module: str, names: Iterable[str]) -> bool:
    return any(module == name or module.endswith(f".{name}") for name in names)


def _lookup(module: str, pattern: Mapping[str, Any], default: Any) -> Any:
    """What a pattern of plain names says of a module: the first key that it ends with, as PEFT has it."""
    for key, value in pattern.items():
        name = key.rstrip("$").replace("\\.", ".")
        if (module == name[1:]) if name.startswith("^") else _names(module, (name,)):
            return value
    return default
