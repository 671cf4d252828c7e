"""One life of a run, from the step it begins at to its end, a signal or a fault: what a loop calls while it trains."""

import hashlib
from collections.abc import Mapping

from llama_jax.core.arrays import PyTree
from llama_jax.core.processes.distributed import JobStopSignal
from llama_jax.core.recording.metrics import MetricsRecord
from llama_jax.core.recording.profiling import Profiler
from llama_jax.core.run import RunDirectory
from llama_jax.runs.config import RunConfig
from llama_jax.runs.recording import Recorder
from llama_jax.runs.saving import Saver
from llama_jax.runs.task import Position


class Life:
    """Recording, saving, profiling and the stop signal of a run, for the loop that trains it. A context manager; all
    processes enter it at the same step.

    Args:
        first: steps made before.
        files: saved with each checkpoint, `model/config.json` among them.
        hashes: kept in each manifest: of the tokenizer, the base and whatever a reader may want to compare.
        pipeline: fingerprint of the data.
        signal: listens since before the state was restored.
    """

    def __init__(
        self,
        config: RunConfig,
        run: RunDirectory,
        first: int,
        files: Mapping[str, bytes],
        hashes: Mapping[str, str],
        pipeline: str,
        signal: JobStopSignal,
    ) -> None:
        of_config = hashlib.sha256(files["model/config.json"]).hexdigest()
        self._saver = Saver(config.checkpoints, run, files, {**hashes, "config": of_config, "pipeline": pipeline})
        self._recorder = Recorder(config, run, first)
        self._profiler = Profiler(run.profile, config.tracking)
        self._signal = signal

    def __enter__(self) -> "Life":
        return self

    def __exit__(self, *_: object) -> None:
        self._profiler.close()
        self._saver.close()  # an error of the data is no reason to lose a save that is under way
        self._recorder.close()

    def record(self, record: MetricsRecord) -> None:
        """Write down a step; each once and in order, and before it is saved."""
        self._recorder.record(record)

    def save(self, items: Mapping[str, PyTree], position: Position, record: MetricsRecord) -> None:
        """Save a step; see `Saver.save`."""
        self._saver.save(items, position, record)

    def is_best(self, record: MetricsRecord) -> bool:
        """Whether a step is to be saved for its validation loss; see `Saver.is_best`."""
        return self._saver.is_best(record)

    def stop_requested(self, step: int) -> bool:
        """Whether to save and leave after this step; the same on all processes."""
        return self._signal.requested(step)

    def trace(self, step: int) -> None:
        """Start or stop a profile; called before each step."""
        self._profiler.step(step)

    def finish(self, step: int) -> None:
        """Wait until the last step is saved.

        Raises:
            SaveFailedError: it could not be.
        """
        self._saver.finish(step)
