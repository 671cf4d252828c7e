"""Models as Hugging Face transformers stores them: a directory with config.json and safetensors or PyTorch files.

Of config.json the spellings of transformers 4 (`rope_theta`, `rope_scaling`) and 5 (`rope_parameters`) are read; the
former are written, as both versions read them. What is said in two places must be the same in both. Code of a model is
never run, whatever its files ask for."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from llama_jax.checkpoints.formats.directories import (
    local_directory,
    member,
    read_bundle,
    write_bundle,
    write_json,
)
from llama_jax.checkpoints.formats.rope_settings import read_rope
from llama_jax.checkpoints.formats.safetensors_files import write_safetensors
from llama_jax.checkpoints.formats.stored_tensors import (
    EMBEDDING,
    PYTORCH,
    SAFETENSORS,
    is_table_of_angles,
    stored_tensors,
)
from llama_jax.checkpoints.formats.weights import ForeignWeights, Weights, foreign_weights, named_tensors
from llama_jax.checkpoints.reward_normalization import padding_file, read_padding
from llama_jax.core.errors import UserError
from llama_jax.core.json_files import JsonFields, agreed, json_object, read_json, shown
from llama_jax.data.tokenizers import (
    Tokenizer,
    has_tokenizer,
    hugging_face_files,
    stop_ids_of,
    tokenizer_from_files,
    with_padding_token,
    with_stop_ids,
)
from llama_jax.model.config import LlamaConfig

_LONGEST_CONFIG = 2**20
_GENERATION = "generation_config.json"
_CLASSIFICATION = "ForSequenceClassification"


def architecture_from(values: Mapping[str, Any], where: str) -> LlamaConfig:
    """The architecture that a config.json describes. What it says of code (`auto_map`) is not looked at.

    Args:
        where: the file, for messages.

    Raises:
        UserError: a field is missing or makes no sense, or asks for something that LLaMA as it is here does not have.
    """
    fields = JsonFields(values, where)
    kind = fields.one_of("model_type", ("llama", "mistral"), None)
    if values.get("quantization_config") is not None:
        raise UserError(f"{where}: quantization_config is set; only weights in float32, float16 or bfloat16 are read")
    context_length = fields.whole("max_position_embeddings", 2048 if kind == "llama" else 131072)
    if kind == "mistral":
        _refuse_window(fields, context_length)
    agreed(where, {name: values.get(name) for name in ("dtype", "torch_dtype")})
    fields.one_of("hidden_act", ("silu",), "silu")
    for bias in ("attention_bias", "mlp_bias"):
        fields.one_of(bias, (False,), False)
    fields.one_of("is_causal", (True,), True)
    fields.one_of("per_layer_config", ({},), {})
    width, heads = fields.whole("hidden_size"), fields.whole("num_attention_heads")
    absent = kind == "mistral" and "num_key_value_heads" not in values
    kv_heads = fields.whole("num_key_value_heads", 8 if absent else heads)
    if heads % kv_heads:
        raise UserError(
            f"{where}: num_key_value_heads is {kv_heads}, which does not divide num_attention_heads {heads}"
        )
    if fields.values.get("head_dim") is None and width % heads:
        raise UserError(f"{where}: num_attention_heads is {heads}, which does not divide hidden_size {width}")
    head_size = fields.whole("head_dim", width // heads or None)
    if head_size % 2:
        raise UserError(f"{where}: head_dim is {head_size}; rotary positions turn pairs, so it must be even")
    rope_base, rope_scaling = read_rope(fields)
    return LlamaConfig(
        vocab_size=fields.whole("vocab_size"),
        width=width,
        mlp_width=fields.whole("intermediate_size"),
        num_layers=fields.whole("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_size=head_size,
        context_length=context_length,
        rope_base=rope_base,
        rope_scaling=rope_scaling,
        norm_epsilon=fields.number("rms_norm_eps", 1e-6),
        tie_embeddings=fields.flag("tie_word_embeddings", False),
        scalar_head=_is_scalar(fields),
    )


def _is_scalar(fields: JsonFields) -> bool:
    """Whether this is transformers' `LlamaForSequenceClassification` with one label, a reward model."""
    classes = fields.checked("architectures", [], lambda value: isinstance(value, list), "a list of names")
    if not any(str(name).endswith(_CLASSIFICATION) for name in classes):
        return False
    fallback = {str(label): "" for label in range(2)}  # as transformers has it
    labels = fields.checked("id2label", fallback, lambda value: isinstance(value, dict), "an object of labels")
    count = fields.whole("num_labels", max(len(labels), 1))
    if count != 1:
        raise UserError(f"{fields.where}: gives {count} labels; of classifiers only one with one label is read")
    return True


def _refuse_window(fields: JsonFields, context_length: int) -> None:
    """Of attention, unless it is as wide as the context."""
    if "sliding_window" not in fields.values:
        raise UserError(f"{fields.where}: lacks sliding_window, which is then 4096; only null is read")
    if fields.values["sliding_window"] is not None and fields.whole("sliding_window") < context_length:
        found = fields.values["sliding_window"]
        raise UserError(
            f"{fields.where}: sliding_window is {found}, less than max_position_embeddings {context_length}; "
            "only attention over the whole context is read, where it is null"
        )


def config_values(config: LlamaConfig, dtype: np.dtype, bos_id: int | None, stop_ids: Sequence[int]) -> dict[str, Any]:
    """The config.json of a model, the inverse of `architecture_from`.

    Args:
        dtype: in which transformers loads the weights if told `auto`.
        bos_id: id that opens a text; None where no tokenizer is known.
        stop_ids: ids that end an answer.
    """
    scaling = config.rope_scaling
    one_label = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    return {
        "architectures": [f"Llama{_CLASSIFICATION if config.scalar_head else 'ForCausalLM'}"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_size,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "max_position_embeddings": config.context_length,
        "rms_norm_eps": config.norm_epsilon,
        "rope_theta": config.rope_base,
        "rope_scaling": None
        if scaling is None
        else {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_frequency_factor,
            "high_freq_factor": scaling.high_frequency_factor,
            "original_max_position_embeddings": scaling.original_context_length,
        },
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": bos_id,
        "eos_token_id": None if not stop_ids else stop_ids[0] if len(stop_ids) == 1 else list(stop_ids),
        "torch_dtype": str(dtype),
        **(one_label if config.scalar_head else {}),
    }


def open_hugging_face(path: epath.PathLike) -> ForeignWeights:
    """The model of a directory, one file or several with an index; safetensors files are preferred to PyTorch's.

    Raises:
        UserError: a file is missing, broken, or may not be opened, or this is not a LLaMA.
    """
    directory = local_directory(path)
    config_path = member(directory, "config.json")
    values = read_json(config_path, max_bytes=_LONGEST_CONFIG)
    config = architecture_from(values, str(config_path))
    files = _files_beside(directory, stop_ids_of(values, str(config_path)), config)
    stored = stored_tensors(directory, tied=config.tie_embeddings)
    return foreign_weights(
        str(path),
        config,
        {**files, **_padding_of(values, config)},
        "hugging_face",
        {name: tensor.described for name, tensor in stored.items()},
        lambda name: stored[name].read(),
        ignored=is_table_of_angles,
    )


def _padding_of(values: Mapping[str, Any], config: LlamaConfig) -> dict[str, bytes]:
    """Which token a reward model is read before; one that is not in the vocabulary is in no text."""
    pad_id = values.get("pad_token_id")
    if config.scalar_head and type(pad_id) is int and 0 <= pad_id < config.vocab_size:
        return padding_file(pad_id)
    return {}


def _files_beside(directory: Path, ids: Sequence[int], config: LlamaConfig) -> Mapping[str, bytes]:
    """What travels with the weights, told the ids that end an answer where only config.json names them.

    Raises:
        UserError: one of the files is broken, or the model has no such token.
    """
    files = read_bundle(directory)
    said = json_object(files.get(_GENERATION, b"{}"), str(directory / _GENERATION)).get("eos_token_id")
    if said is not None or not ids:
        return files
    if max(ids) >= config.vocab_size:
        raise UserError(
            f"{directory / 'config.json'}: eos_token_id {max(ids)} is not below vocab_size {config.vocab_size}"
        )
    return with_stop_ids(files, ids)


def write_hugging_face(
    target: epath.PathLike, weights: Weights, *, dtype: np.dtype | None = None, max_shard_bytes: int = 5_000_000_000
) -> None:
    """Write a model for `transformers.AutoModelForCausalLM` (4 and 5), or of a reward model for
    `AutoModelForSequenceClassification`, and all that reads the same files.

    Args:
        target: an existing local directory.
        dtype: type of all tensors; None: as stored.
        max_shard_bytes: a model with more is written in several files with an index.

    Raises:
        UserError: the target is in object storage, or a value is too large for the type.
    """
    directory = local_directory(target)
    tensors, read = named_tensors(weights, "hugging_face", dtype)
    shards: list[dict[str, tuple[tuple[int, ...], np.dtype]]] = [{}]
    sizes = [0]
    for name, (shape, kind) in tensors.items():
        size = math.prod(shape) * kind.itemsize
        if sizes[-1] and sizes[-1] + size > max_shard_bytes:
            shards.append({})
            sizes.append(0)
        shards[-1][name] = shape, kind
        sizes[-1] += size
    homes = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    if len(shards) == 1:
        homes = [SAFETENSORS]
    for home, shard in zip(homes, shards, strict=True):
        write_safetensors(directory / home, shard, read)
    if len(shards) > 1:
        placed = {name: home for home, shard in zip(homes, shards, strict=True) for name in shard}
        write_json(
            directory / f"{SAFETENSORS}.index.json", {"metadata": {"total_size": sum(sizes)}, "weight_map": placed}
        )
    _write_rest(directory, weights, tensors[EMBEDDING][1])


def _write_rest(directory: Path, weights: Weights, dtype: np.dtype) -> None:
    """The configuration, and a tokenizer that transformers reads."""
    files, bos_id, stop_ids = transformers_files(weights.files, weights.source), None, ()
    pad_id = read_padding(weights.files, weights.source) if weights.config.scalar_head else None
    if has_tokenizer(files):
        tokenizer = tokenizer_from_files(files, weights.source)
        bos_id, stop_ids = tokenizer.bos_id, tokenizer.stop_ids
        if weights.config.scalar_head and (name := _padding_token(tokenizer, weights.config, pad_id)) is not None:
            pad_id, files = tokenizer.special_tokens[name], with_padding_token(files, name)
    more = {} if pad_id is None else {"pad_token_id": pad_id}
    write_bundle(directory, files)
    write_json(directory / "config.json", config_values(weights.config, dtype, bos_id, stop_ids) | more)


def _padding_token(tokenizer: Tokenizer, config: LlamaConfig, own: int | None) -> str | None:
    """The name of a token to pad the rows of a reward model with, before which transformers reads a score: the one that
    the model came with, or else one that no answer ends with. None where there is no such token; it then takes one row
    at a time."""
    if own is not None:
        return next((name for name, token in tokenizer.special_tokens.items() if token == own), None)
    names, stops = tokenizer.token_names, tokenizer.stop_ids
    wanted = [names[use] for use in ("pad_token", "unk_token", "bos_token") if use in names]
    ids = {name: token for name, token in tokenizer.special_tokens.items() if token < config.vocab_size}
    return next((name for name in (*wanted, *ids) if name in ids and ids[name] not in stops), None)


def transformers_files(files: Mapping[str, bytes], where: str) -> dict[str, bytes]:
    """What travels with weights, its tokenizer as transformers' `AutoTokenizer` takes it for the same ids.

    Args:
        where: what they came from, for messages.
    """
    if not has_tokenizer(files):
        return dict(files)
    tokenizer = tokenizer_from_files(files, where)
    return with_stop_ids({**files, **hugging_face_files(tokenizer)}, tokenizer.stop_ids)


def hub_directory(repo_id: str) -> Path:
    """Download a model of the Hugging Face hub, or find it in the hub's cache; gives its local directory.

    PyTorch files are downloaded only where there are no safetensors.

    Raises:
        UserError: there is no such model, it may not be read, or neither the hub nor the cache has it within reach.
    """
    import huggingface_hub

    texts = ["config.json", "generation_config.json", "tokenizer*", "special_tokens_map.json", "*chat_template*.jinja"]
    texts += ["added_tokens.json", "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"]
    try:
        for weights in (SAFETENSORS, PYTORCH):
            stem, _, suffix = weights.partition(".")
            wanted = [weights, f"{weights}.index.json", f"{stem}-*.{suffix}", *texts]
            directory = Path(huggingface_hub.snapshot_download(repo_id, allow_patterns=wanted))
            if any(directory.glob(f"{stem}*.{suffix}")):
                break
    except Exception as error:  # the classes differ from one HTTP library to the next
        reason = shown(str(error).strip().partition("\n")[0])
        raise UserError(f"--model {repo_id}: could not be fetched from the Hugging Face hub: {reason}") from None
    return directory
