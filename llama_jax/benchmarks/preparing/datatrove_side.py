"""The other side of `benchmark prepare --against datatrove`, a command of its own. Imports nothing of ours.

What datatrove is told makes it as fast as it goes: documents stay in their order, nothing is compressed, words are what
white space parts, which costs less than any of its own splitters."""

import json
import os
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    """Do the task in the last argument, JSON: `task`, `source` and `output` (folders), `workers`, and what the task
    asks for. Prints how many documents it left out as its last line, JSON."""
    task = json.loads(sys.argv[-1])
    os.environ["HF_HUB_OFFLINE"] = "1"
    {"tokenization": _tokenize, "near_duplicates": _deduplicate}[task["task"]](task)


def _run(task: dict[str, Any], name: str, pipeline: list[Any], tasks: int) -> Any:
    from datatrove.executor import LocalPipelineExecutor

    logs = str(Path(task["output"]) / "logs" / name)
    return LocalPipelineExecutor(pipeline, tasks=tasks, workers=min(tasks, task["workers"]), logging_dir=logs).run()


def _reader(task: dict[str, Any]) -> Any:
    from datatrove.pipeline.readers import JsonlReader

    return JsonlReader(task["source"], compression=None)


def _tokenize(task: dict[str, Any]) -> None:
    from datatrove.pipeline.tokens import DocumentTokenizer

    tokenizer = DocumentTokenizer(
        f"{task['output']}/tokens",
        tokenizer_name_or_path=task["tokenizer"],
        eos_token=task["eos"],
        shuffle_documents=False,
    )
    _run(task, "tokens", [_reader(task), tokenizer], task["workers"])
    print(json.dumps({"dropped": 0}))


def _deduplicate(task: dict[str, Any]) -> None:
    from datatrove.pipeline.dedup.minhash import (
        MinhashConfig,
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.writers import JsonlWriter
    from datatrove.utils.hashing import HashConfig

    output, workers = task["output"], task["workers"]
    config = MinhashConfig(
        n_grams=task["shingle"],
        num_buckets=task["bands"],
        hashes_per_bucket=task["rows"],
        hash_config=HashConfig(precision=64),
    )
    signatures, buckets, removed = (f"{output}/{name}" for name in ("signatures", "buckets", "removed"))
    signature = MinhashDedupSignature(signatures, config, language=_splitter())
    _run(task, "signatures", [_reader(task), signature], workers)
    _run(task, "buckets", [MinhashDedupBuckets(signatures, buckets, config=config)], task["bands"])
    _run(task, "cluster", [MinhashDedupCluster(buckets, removed, config=config)], 1)
    writer = JsonlWriter(f"{output}/kept", compression=None)
    _run(task, "filter", [_reader(task), MinhashDedupFilter(removed), writer], workers)
    kept = sum(content.count(b"\n") for path in Path(output, "kept").iterdir() for content in [path.read_bytes()])
    print(json.dumps({"dropped": task["documents"] - kept}))


def _splitter() -> Any:
    from llama_jax.benchmarks.preparing.white_space import WhiteSpace

    return WhiteSpace()
