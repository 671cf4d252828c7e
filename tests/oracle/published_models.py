"""Directories of published LLaMA-shaped models, made small, and how such directories differ from one version of
transformers, and one tool, to the next.

A directory has the config.json of the model (`published_configs.json` says where each was read) with fewer and smaller
layers, weights from a formula, and a small tokenizer of the model's kind."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from small_llamas import weight

PUBLISHED: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("published_configs.json").read_text())
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
ANGLES = "model.layers.0.self_attn.rotary_emb.inv_freq"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
TOKENS = (np.arange(160)[None] ** 2 * 31 + 7) % 259
TEXTS = ("The miller had three sons.", " two  spaces and a\ttab", "naïve café, 北京 🙂", "x = 1\n\n\ty = 22")
LENGTH = 64
"""What the small models have for an `original_max_position_embeddings` of 8192."""

_ADDED = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
_LLAMA2_TOKENS = {
    name: {"__type": "AddedToken", "content": text, **_ADDED}
    for name, text in {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}.items()
}
TOKENIZER_CONFIGS: dict[str, dict[str, Any]] = {
    "spm": {
        "add_bos_token": True, "add_eos_token": False, "clean_up_tokenization_spaces": False, "legacy": False,
        "model_max_length": 1000000000000000019884624838656, "pad_token": None, "padding_side": "right",
        "sp_model_kwargs": {}, "tokenizer_class": "LlamaTokenizer", **_LLAMA2_TOKENS,
    },
    "llama3": {
        "bos_token": "<|begin_of_text|>", "clean_up_tokenization_spaces": True, "eos_token": "<|eot_id|>",
        "model_input_names": ["input_ids", "attention_mask"], "model_max_length": 131072,
        "tokenizer_class": "PreTrainedTokenizerFast",
    },
    "byte-level": {
        "add_prefix_space": False, "bos_token": "<|endoftext|>", "clean_up_tokenization_spaces": False,
        "eos_token": "<|endoftext|>", "model_max_length": 8192, "tokenizer_class": "GPT2Tokenizer",
        "unk_token": "<|endoftext|>", "vocab_size": 49152,
    },
}  # fmt: skip
"""By kind of tokenizer: those of Llama 2, Llama 3.1 (without the tokens, which are in tokenizer.json) and SmolLM2."""
RECORDED_FILES = {
    "spm": ("tokenizer.model",),
    "spm and json": ("tokenizer.model", "tokenizer.json", "newer.json"),
    "llama3": ("llama3.json",),
    "byte-level": ("byte-level.json",),
}
"""By kind of tokenizer, those of its recorded files."""
OTHER_NAMES = dict.fromkeys(("llama3.json", "byte-level.json"), "tokenizer.json")
"""Of recorded files, what they are called in a directory."""


@dataclass
class Directory:
    """What is going to be in a directory."""

    config: dict[str, Any]
    tensors: dict[str, np.ndarray]
    files: dict[str, bytes]
    """All but config.json and the weights."""
    homes: dict[str, str] = field(default_factory=dict)
    """Of each tensor the shard; empty: all are in model.safetensors."""
    index: dict[str, str] = field(default_factory=dict)
    """What the index says against that."""

    def write(self, folder: Path) -> Path:
        """Write it."""
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(self.config, indent=2))
        for name, content in self.files.items():
            if name != "newer.json":
                (folder / name).write_bytes(content)
        homes = self.homes or dict.fromkeys(self.tensors, "model.safetensors")
        for home in sorted(set(homes.values())):
            some = {name: array for name, array in self.tensors.items() if homes[name] == home}
            save_file(some, folder / home, metadata={"format": "pt"})
        if self.homes:
            listed = {name: home for name, home in (self.homes | self.index).items() if home}
            index = {"metadata": {"total_size": 1}, "weight_map": listed}
            (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        return folder


def small(name: str, recorded: Mapping[str, bytes]) -> Directory:
    """The directory as published, but small.

    Args:
        recorded: files of the small tokenizers, see `RECORDED_FILES`, and `sizes.json`, how many tokens each kind has.
    """
    kind, config = PUBLISHED[name]["tokenizer"], dict(PUBLISHED[name]["config"])
    files = {OTHER_NAMES.get(file, file): recorded[file] for file in RECORDED_FILES[kind]}
    files["tokenizer_config.json"] = json.dumps(TOKENIZER_CONFIGS[kind.partition(" ")[0]]).encode()
    heads, kv_heads = config["num_attention_heads"], config.get("num_key_value_heads", config["num_attention_heads"])
    size, group = config["hidden_size"] // heads, heads // kv_heads
    heads = 4 if group == 1 else 2 * min(group, 4)
    head = 10 if size == 100 else 16  # the odd one of open_llama_3b
    config |= {
        "hidden_size": heads * head,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": heads,
    }
    if "num_key_value_heads" in config:
        config["num_key_value_heads"] = heads // min(group, 4)
    if "head_dim" in config:
        config["head_dim"] = head * config["head_dim"] // size // 2 * 2
    config["vocab_size"] = json.loads(recorded["sizes.json"])[kind] + (8 if name.startswith("deepseek") else 0)
    config["max_position_embeddings"] = max(256, config["max_position_embeddings"] * LENGTH // 8192)
    if config.get("rope_scaling") and "original_max_position_embeddings" in config["rope_scaling"]:
        config["rope_scaling"] = config["rope_scaling"] | {"original_max_position_embeddings": LENGTH}
    config |= {key: min(config[key], 2) for key in ("bos_token_id",) if key in config} | {"eos_token_id": 2}
    return Directory(config, tensors_of(config), files)


def tensors_of(config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The weights that a config.json asks for."""
    width, inner, heads = (config[key] for key in ("hidden_size", "intermediate_size", "num_attention_heads"))
    queries = heads * config.get("head_dim", width // heads)
    keys = queries // heads * config.get("num_key_value_heads", heads)
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (config["vocab_size"], width), "model.norm.weight": (width,)}
    for layer in range(config["num_hidden_layers"]):
        of_layer = {
            "input_layernorm": (width,),
            "self_attn.q_proj": (queries, width),
            "self_attn.k_proj": (keys, width),
            "self_attn.v_proj": (keys, width),
            "self_attn.o_proj": (width, queries),
            "post_attention_layernorm": (width,),
            "mlp.gate_proj": (inner, width),
            "mlp.up_proj": (inner, width),
            "mlp.down_proj": (width, inner),
        }
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in of_layer.items()}
    if not config["tie_word_embeddings"]:
        shapes[HEAD] = (config["vocab_size"], width)
    return {name: weight(name, shape) for name, shape in shapes.items()}


Change = Callable[[Directory], object]


def config(**changes: Any) -> Change:
    """Fields of config.json that are other; None takes one away, "null" writes null."""

    def change(directory: Directory) -> None:
        directory.config |= changes
        for name, value in changes.items():
            if value is None:
                del directory.config[name]
            elif value == "null":
                directory.config[name] = None

    return change


def rope(**fields: Any) -> dict[str, Any]:
    """Llama 3.1's scaling, with other fields; None takes one away."""
    whole = dict(factor=8.0, high_freq_factor=4.0, low_freq_factor=1.0, original_max_position_embeddings=LENGTH)
    return {name: value for name, value in ({"rope_type": "llama3"} | whole | fields).items() if value is not None}


def renamed(**names: str) -> Change:
    """Fields of config.json under other names."""

    def change(directory: Directory) -> None:
        for old, new in names.items():
            directory.config[new] = directory.config.pop(old)

    return change


def all_of(*changes: Change) -> Change:
    """One change after another."""
    return lambda directory: [change(directory) for change in changes]


def in_shards(*more: str, index: Mapping[str, str] | None = None, start: str = "") -> Change:
    """Two files and an index.

    Args:
        more: further tensors of the first file, tables of rotary angles or the head.
        index: what the index says of some tensors; empty: it leaves them out.
        start: of the names of files in the index.
    """

    def change(directory: Directory) -> None:
        for name in more:
            directory.tensors[name] = directory.tensors[EMBEDDING] if name == HEAD else np.ones(8, np.float32)
        names = sorted(directory.tensors)
        directory.homes = {name: SHARDS[place > 9 and name not in more] for place, name in enumerate(names)}
        directory.index = {name: start + home for name, home in directory.homes.items()} | dict(index or {})

    return change


def tensors(**names: str | None) -> Change:
    """Tensors under other names, `embedding`, `head`; None takes one away."""

    def change(directory: Directory) -> None:
        for short, new in names.items():
            array = directory.tensors.pop({"embedding": EMBEDDING, "head": HEAD}[short])
            if new is not None:
                directory.tensors[new] = array

    return change


def copied_head(difference: float = 0.0) -> Change:
    """The head beside the embedding that it is tied to."""
    return lambda directory: directory.tensors.update({HEAD: directory.tensors[EMBEDDING] + np.float32(difference)})


def without_model(directory: Directory) -> None:
    """Names as `LlamaModel.save_pretrained` writes them."""
    directory.tensors = {name.removeprefix("model."): array for name, array in directory.tensors.items()}
    directory.config["architectures"] = ["LlamaModel"]


def tokenizer_config(**changes: Any) -> Change:
    """Fields of tokenizer_config.json that are other; None takes one away."""

    def change(directory: Directory) -> None:
        said = json.loads(directory.files["tokenizer_config.json"]) | changes
        kept = {name: value for name, value in said.items() if name not in changes or value is not None}
        directory.files["tokenizer_config.json"] = json.dumps(kept).encode()

    return change


def newer_json(directory: Directory) -> None:
    """tokenizer.json as transformers 5 makes it of a tokenizer.model, and the class that it names."""
    directory.files["tokenizer.json"] = directory.files.pop("newer.json")
    tokenizer_config(tokenizer_class="TokenizersBackend", backend="tokenizers")(directory)


def without(*names: str) -> Change:
    """Files that are not there."""
    return lambda directory: [directory.files.pop(name) for name in names]


def nothing(directory: Directory) -> None:
    """As published."""


def picked(logits: np.ndarray) -> np.ndarray:
    """Of logits [1, T, V] those that are recorded."""
    return logits[0, [3, 40, 100, 159], ::3]
