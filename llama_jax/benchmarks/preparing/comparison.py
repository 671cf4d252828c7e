"""`benchmark prepare --against datatrove`: both commands on the same documents, in alternating turns."""

import importlib.metadata
import importlib.util
import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from llama_jax.benchmarks import turns
from llama_jax.benchmarks.preparing.config import PrepareBenchmarkConfig, Task
from llama_jax.benchmarks.preparing.documents import small_tokenizer, write_documents
from llama_jax.benchmarks.preparing.measured import Measured, measured
from llama_jax.benchmarks.results import gigabytes, say
from llama_jax.core.errors import UserError
from llama_jax.data.sources.prepared import read_manifest
from llama_jax.data.tokenizers import load_tokenizer

_SHINGLE, _BANDS, _ROWS = 5, 14, 8
_THRESHOLD = 0.75
_SHARDS_PER_WORKER = 4
_SHARD_MEGABYTES = 8.0  # at the most: what is noted of short documents takes as much memory as their text
_DATATROVE_SIDE = "from llama_jax.benchmarks.preparing.datatrove_side import main; main()"


class _Side(NamedTuple):
    """One of the two commands."""

    command: Callable[[Path], Sequence[str]]
    """That writes to a folder."""
    dropped: Callable[[Path, Path], int]
    """Documents left out, by the folder written and what was printed."""


def compare_preparation(config: PrepareBenchmarkConfig) -> dict[str, Any]:
    """Both sides in turns, for each task.

    Raises:
        UserError: datatrove is missing, or the tokenizer is not a `tokenizer.json`.
    """
    if importlib.util.find_spec("datatrove") is None:
        raise UserError("--against datatrove: needs datatrove; pip install 'llama_jax[datatrove]'")
    with tempfile.TemporaryDirectory(dir=config.folder) as made:
        folder = Path(made)
        (folder / "source").mkdir()
        text_bytes = write_documents(config.made, folder / "source", config.workers)
        small = small_tokenizer()
        (folder / small.file_name).write_bytes(small.to_bytes())
        say(config, f"{config.made.documents:,} documents, {text_bytes / 1e6:,.1f} MB of text")
        version = importlib.metadata.version("datatrove")
        result: dict[str, Any] = {
            "documents": config.made.documents,
            "text_bytes": text_bytes,
            "workers": config.workers,
            "datatrove": version,
        }
        for task in config.tasks:
            result[task] = _compared(config, task, folder, text_bytes)
    return result


def _compared(config: PrepareBenchmarkConfig, task: Task, folder: Path, text_bytes: int) -> dict[str, Any]:
    sides = {"llama_jax": _own_side(config, task, folder, text_bytes), "datatrove": _other_side(config, task, folder)}
    taken: dict[str, list[Measured]] = {name: [] for name in sides}
    result: dict[str, Any] = {name: {} for name in sides}
    for number in range(config.turns):
        for name, side in sides.items():
            written, log = folder / name, folder / f"{name}.log"
            shutil.rmtree(written, ignore_errors=True)
            taken[name].append(measured(side.command(written), log))
            result[name]["dropped"] = side.dropped(written, log)
            if name == "llama_jax" and task == "tokenization":
                result["tokens"] = read_manifest(written).tokens
            shutil.rmtree(written)
        rates = [config.made.documents / each[-1].seconds for each in taken.values()]
        ratio = rates[0] / rates[1]
        worked = " and ".join(f"{each[-1].processor_seconds:.1f}" for each in taken.values())
        say(
            config,
            f"{task}, turn {number + 1}: {rates[0]:,.0f} and {rates[1]:,.0f} documents/s, ratio {ratio:.2f}; {worked} "
            "processor seconds",
        )
    for name, each in taken.items():
        seconds = [turn.seconds for turn in each]
        middle, peak = statistics.median(seconds), max(turn.peak_bytes for turn in each)
        result[name] |= {
            "seconds": turns.summary(seconds),
            "documents_per_second": config.made.documents / middle,
            "megabytes_per_second": text_bytes / middle / 1e6,
            "tokens_per_second": result["tokens"] / middle if task == "tokenization" else None,
            "processor_seconds": turns.summary([turn.processor_seconds for turn in each]),
            "peak_bytes": peak,
        }
        tokens = f", {result['tokens'] / middle:,.0f} tokens/s" if task == "tokenization" else ""
        say(
            config,
            f"{task}, {name}: {config.made.documents / middle:,.0f} documents/s, {text_bytes / middle / 1e6:,.2f} "
            f"MB/s{tokens}, peak memory {gigabytes(peak)}, {result[name]['dropped']:,} dropped",
        )
    own, other = (result[name] for name in sides)
    result["ratio"] = own["documents_per_second"] / other["documents_per_second"]
    result["memory_ratio"] = own["peak_bytes"] / other["peak_bytes"]
    say(config, f"{task}: {result['ratio']:.2f} times the speed, {result['memory_ratio']:.2f} of the peak memory")
    return result


def _own_side(config: PrepareBenchmarkConfig, task: Task, folder: Path, text_bytes: int) -> _Side:
    settings = {
        "data.source": folder / "source" / "*.jsonl",
        "data.tokenizer": config.tokenizer if task == "tokenization" else folder / "tokenizer.model",
        "workers": config.workers,
        # Enough for all workers to end at about the same time.
        "shard_megabytes": min(_SHARD_MEGABYTES, text_bytes / 1e6 / (_SHARDS_PER_WORKER * config.workers)),
    }
    if task == "near_duplicates":
        settings |= {
            "near_duplicates.threshold": _THRESHOLD,
            "near_duplicates.shingle": _SHINGLE,
            "near_duplicates.bands": _BANDS,
            "near_duplicates.rows": _ROWS,
        }
    arguments = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "llama_jax.prepare", *arguments]
    return _Side(
        lambda written: [*command, "--output", os.fspath(written)],
        lambda written, _: sum(read_manifest(written).dropped.values()),
    )


def _other_side(config: PrepareBenchmarkConfig, task: Task, folder: Path) -> _Side:
    told = {
        "task": task,
        "source": os.fspath(folder / "source"),
        "documents": config.made.documents,
        "workers": config.workers,
        "shingle": _SHINGLE,
        "bands": _BANDS,
        "rows": _ROWS,
    }
    if task == "tokenization":
        told |= _as_datatrove_takes_it(config, folder)
    return _Side(
        lambda written: [sys.executable, "-c", _DATATROVE_SIDE, json.dumps(told | {"output": os.fspath(written)})],
        lambda _, log: json.loads(log.read_text().splitlines()[-1])["dropped"],
    )


def _as_datatrove_takes_it(config: PrepareBenchmarkConfig, folder: Path) -> dict[str, str]:
    """The tokenizer: its file, and the name of the token that ends documents."""
    tokenizer = load_tokenizer(str(config.tokenizer))
    if tokenizer.file_name != "tokenizer.json":
        raise UserError(f"--tokenizer {config.tokenizer}: is a {tokenizer.file_name}; datatrove takes a tokenizer.json")
    file = folder / tokenizer.file_name
    file.write_bytes(tokenizer.to_bytes())
    names = {token: name for name, token in tokenizer.special_tokens.items()}
    return {"tokenizer": os.fspath(file), "eos": names[tokenizer.eos_id]}
