"""What a reward model is used with, in files beside its weights: its scale, and the padding of other tools.

The scale is what makes its scores of reference answers have mean 0 and deviation 1 (Ziegler et al.
2019, arXiv:1909.08593, section 2.1); the scores themselves stay as they are."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from llama_jax.core.json_files import JsonFields, json_object

NORMALIZATION_FILE = "reward_normalization.json"
"""Travels with the weights: see `Weights.files`."""
PADDING_FILE = "reward_padding.json"
"""Does so where a reward model comes from transformers, which reads a score at the last token that is not padding."""


@dataclass(frozen=True)
class RewardNormalization:
    """A normalised score is `gain` times the score, plus `bias`; works on numbers and on arrays."""

    gain: float = 1.0
    bias: float = 0.0

    def __call__(self, scores: Any) -> Any:
        return self.gain * scores + self.bias

    def to_json(self) -> bytes:
        """The content of `NORMALIZATION_FILE`."""
        return json.dumps(asdict(self)).encode() + b"\n"


def normalization_of(mean: float, deviation: float) -> RewardNormalization:
    """What gives scores of this mean and standard deviation mean 0 and deviation 1; only their mean is taken off where
    they do not differ."""
    gain = 1 / deviation if deviation > 0 else 1.0
    return RewardNormalization(gain, -mean * gain)


def measured_normalization(record: Mapping[str, Any]) -> dict[str, bytes]:
    """The file of a checkpoint, by path, from the record of its step: there if the step was evaluated, so that its
    `reward_mean` and `reward_deviation`, those of the scores of reference answers, are of these very weights."""
    if "reward_mean" not in record:
        return {}
    made = normalization_of(record["reward_mean"], record["reward_deviation"])
    return {f"model/{NORMALIZATION_FILE}": made.to_json()}


def read_normalization(files: Mapping[str, bytes], where: str) -> RewardNormalization | None:
    """What travels with the weights of a reward model; None where nothing does.

    Args:
        files: see `Weights.files`.
        where: what they belong to, for messages.

    Raises:
        UserError: the file is not what `RewardNormalization.to_json` writes.
    """
    if NORMALIZATION_FILE not in files:
        return None
    source = f"{where}: {NORMALIZATION_FILE}"
    fields = JsonFields(json_object(files[NORMALIZATION_FILE], source), source)
    bias = fields.checked("bias", None, _is_bounded, "a number")
    return RewardNormalization(fields.number("gain"), float(bias))


def _is_bounded(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e30


def padding_file(pad_id: int) -> dict[str, bytes]:
    """The content of `PADDING_FILE`, by its name."""
    return {PADDING_FILE: json.dumps({"pad_token_id": pad_id}).encode() + b"\n"}


def read_padding(files: Mapping[str, bytes], where: str) -> int | None:
    """The id before which a reward model is read where texts end with it, as EOS may be; None: it is read where they
    end.

    Args:
        files: see `Weights.files`.
        where: what they belong to, for messages.

    Raises:
        UserError: the file is not what `padding_file` gives.
    """
    if PADDING_FILE not in files:
        return None
    source = f"{where}: {PADDING_FILE}"
    fields = JsonFields(json_object(files[PADDING_FILE], source), source)
    return int(fields.checked("pad_token_id", None, lambda value: type(value) is int, "a whole number"))


def without_normalization(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """What travels with weights, for others made from them: their scores have another scale, and are read where an
    answer ends."""
    return {name: content for name, content in files.items() if name not in (NORMALIZATION_FILE, PADDING_FILE)}
