"""The parts of `benchmark all`: each is a command of this package that anybody can give by itself. Knows their order
and about how long they take, and not what comes out of them."""

from dataclasses import dataclass, replace
from typing import Literal

Kind = Literal["numbers", "training", "decoding", "attention"]


@dataclass(frozen=True)
class Part:
    """One measurement."""

    name: str
    what: str
    """In words, for people."""
    kind: Kind
    """What its result looks like."""
    seconds: int
    """About how long it takes, starting and compiling included. A guess where nothing was measured yet."""
    command: tuple[str, ...]
    """Arguments of `llama-jax`, without `--json`."""
    needs: tuple[str, ...] = ()
    """Packages without which it cannot run."""
    beside: str = ""
    """The part that measures the same here, where this one is of another program."""
    published: str = ""
    """What others report of the same, not ours."""


_QUICK = ("--turns", "3", "--steps_per_turn", "1", "--warmup_steps", "1")


def _numbers(seconds: int) -> Part:
    return Part("numbers", "the self-check of numbers", "numbers", seconds, ("doctor", "--seconds", "2"))


def _pair(part: Part, seconds: int, *otherwise: str) -> tuple[Part, Part]:
    """A part, and the same in PyTorch; of a training step of ours the heaviest operations are told, too.

    Args:
        otherwise: settings of PyTorch's side: rows at a time that fit, since each try that does not is compiled.
    """
    profile = ("--profile_steps", "1") if part.kind == "training" else ()
    return replace(part, command=(*part.command, *profile)), Part(
        f"{part.name}_pytorch",
        f"{part.what} in PyTorch",
        part.kind,
        seconds,
        (*part.command, "--program", "pytorch", *otherwise),
        needs=("torch",),
        beside=part.name,
    )


def _ordered(numbers: Part, pairs: list[tuple[Part, Part]], attention: list[Part]) -> tuple[Part, ...]:
    """What is ours first, then the other sides, then what explains them."""
    return (numbers, *(own for own, _ in pairs), *(other for _, other in pairs), *attention)


_GPU = _ordered(
    _numbers(75),
    [
        _pair(
            Part(
                "lora_8b",
                "LoRA of Llama 3 8B, rank 16, rows of 4,096 tokens",
                "training",
                110,
                ("benchmark", "lora", "--config", "benchmark_lora_8b"),
                published="12,473 tokens/s (NeMo AutoModel, one H100)",
            ),
            110,
            "--training.microbatches=8",
        ),
        _pair(
            Part(
                "train_1b",
                "training of Llama 3.2 1B, rows of 4,096 tokens",
                "training",
                80,
                ("benchmark", "train", "--config", "benchmark_1b"),
                published="303 TFLOP/s a GPU (nanotron, 1B)",
            ),
            80,
            "--training.microbatches=8",
        ),
        _pair(
            Part(
                "decode_8b",
                "decoding of Llama 3 8B, prompts and answers of 128 tokens",
                "decoding",
                75,
                ("benchmark", "decode", "--config", "benchmark_decode_8b", "--turns", "3"),
                published="at most 209 tokens/s in one stream, by the maker's figures of an H100",
            ),
            75,
        ),
    ],
    [
        Part(
            f"attention_{size}",
            f"attention at the shapes of benchmark_{size}",
            "attention",
            40,
            ("benchmark", "attention", "--config", f"benchmark_{size}"),
        )
        for size in ("lora_8b", "1b")
    ],
)
"""Sizes for one GPU with 80 GB."""

_CPU = _ordered(
    _numbers(40),
    [
        _pair(
            Part(
                "lora_135m",
                "LoRA of SmolLM2-135M's shape, rank 8, rows of 256 tokens",
                "training",
                60,
                ("benchmark", "lora", "--config", "benchmark_lora", *_QUICK, "--lora.target_modules", "[all-linear]"),
            ),
            40,
        ),
        _pair(
            Part(
                "train_58m",
                "training of 58M parameters, rows of 512 tokens",
                "training",
                60,
                ("benchmark", "train", "--config", "benchmark_58m", *_QUICK),
            ),
            40,
        ),
        _pair(
            Part(
                "decode_135m",
                "decoding of SmolLM2-135M's shape, prompts of 64 tokens and answers of 16",
                "decoding",
                75,
                (
                    *("benchmark", "decode", "--model.size", "smollm2_135m", "--decode_rows", "4"),
                    *("--prompt_tokens", "64", "--new_tokens", "16", "--turns", "3"),
                ),
            ),
            40,
        ),
    ],
    [
        Part(
            "attention_58m",
            "attention at the shapes of benchmark_58m",
            "attention",
            20,
            ("benchmark", "attention", "--config", "benchmark_58m"),
        )
    ],
)
"""The same at sizes for a few processor cores."""


def parts_for(platform: str) -> tuple[Part, ...]:
    """The parts for `cpu`, `gpu` or `tpu`, the most important first."""
    return _CPU if platform == "cpu" else _GPU
