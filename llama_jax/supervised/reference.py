"""log p of every completion under the model that a run begins with, which DPO and KTO hold the trained one against:
found once, and kept in the run, so that the reference model is never beside the trained one."""

import hashlib
import json
from collections.abc import Callable, Iterator
from typing import Protocol, runtime_checkable

import numpy as np

from llama_jax.core.arrays import PyTree
from llama_jax.core.batches import CompletionBatch
from llama_jax.core.processes.distributed import from_main_process
from llama_jax.core.run_directory import RunDirectory
from llama_jax.data.instructions.example_data import EncodedExamples
from llama_jax.data.rows.streams import Rows
from llama_jax.model.llama import LanguageModel
from llama_jax.runs.completion_sums import completion_sums


@runtime_checkable
class ReferencedData(Protocol):
    """Examples that take log-probs of a reference model, such as `data.preferences.loader.PreferenceLoader`."""

    @property
    def fingerprint(self) -> str: ...
    @property
    def validation(self) -> EncodedExamples: ...
    def batches_in_order(self, batch_size: int) -> Iterator[Rows]: ...
    def validation_batches(self, batch_size: int) -> Iterator[Rows]: ...
    def set_reference(self, training: np.ndarray, validation: np.ndarray) -> None: ...


def set_reference(
    kind: type[CompletionBatch],
    data: ReferencedData,
    model: LanguageModel,
    open_params: Callable[[], PyTree],
    identity: object,
    batch_size: int,
    run: RunDirectory,
) -> None:
    """Give the data the log-probs that the run keeps, or find them, on the mesh in use.

    Args:
        kind: class of the batches.
        model: as it is trained.
        open_params: parameters of the reference model, on the mesh; called only where nothing fitting is kept.
        identity: what tells the reference model from others, as JSON values.
        batch_size: rows of a global batch.
    """
    facts = json.dumps([data.fingerprint, data.validation.digest(), identity], sort_keys=True)
    fingerprint = hashlib.sha256(facts.encode()).hexdigest()
    kept = run.path / "reference_logprobs.json"
    content = from_main_process(lambda: kept.read_bytes() if kept.exists() else b"")
    sums = _kept(content, fingerprint)
    if sums is None:
        run.say("finding log p of every completion under the reference model, once")
        params = open_params()
        batches = (data.batches_in_order(batch_size), data.validation_batches(batch_size))
        sums = [completion_sums(model, kind, params, each) for each in batches]
        record = {"fingerprint": fingerprint, "digest": _digest(sums), "sums": [each.tolist() for each in sums]}
        run.keep(kept, json.dumps(record))
    data.set_reference(*sums)


def _kept(content: bytes, fingerprint: str) -> list[np.ndarray] | None:
    """What is kept, if it is of these data and this model; a file that is damaged or of others is made anew."""
    try:
        record = json.loads(content)
        sums = [np.array(each, np.float32) for each in record["sums"]]
        fits = record["fingerprint"] == fingerprint and record["digest"] == _digest(sums)
    except (ValueError, KeyError, TypeError):
        return None
    return sums if fits else None


def _digest(sums: list[np.ndarray]) -> str:
    return hashlib.sha256(b"".join(each.tobytes() for each in sums)).hexdigest()
