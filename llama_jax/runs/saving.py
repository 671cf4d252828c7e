"""What a run saves, and which of its steps is the best."""

import json
from collections.abc import Mapping

import jax

from llama_jax.checkpoints.config import CheckpointConfig
from llama_jax.checkpoints.steps.folders import VALIDATION, best_step, validation_loss
from llama_jax.checkpoints.steps.saving import Checkpoints
from llama_jax.core.arrays import PyTree
from llama_jax.core.errors import SaveFailedError
from llama_jax.core.processes.distributed import is_main_process
from llama_jax.core.recording.metrics import MetricsRecord
from llama_jax.core.run import RunDirectory
from llama_jax.runs.task import Position


class Saver:
    """Saves steps of a run in the background; see `Checkpoints`. All processes call it alike.

    Args:
        files: saved with each step, by path.
        hashes: kept in each manifest.
    """

    def __init__(
        self, config: CheckpointConfig, run: RunDirectory, files: Mapping[str, bytes], hashes: Mapping[str, str]
    ) -> None:
        self._files = files if is_main_process() else {}
        self._hashes = hashes
        self._checkpoints = Checkpoints(run.checkpoints, config, say=run.say)
        if is_main_process():
            self._checkpoints.clean_up()
        self._keeps_best = config.keep_best
        step = best_step(run.checkpoints) if config.keep_best else None
        self._lowest = None if step is None else validation_loss(run.checkpoints, step)

    def save(self, items: Mapping[str, PyTree], position: Position, record: MetricsRecord) -> None:
        """Save a step. Returns when its arrays may be donated.

        Args:
            items: trees of arrays.
            position: of the data, after this step.
            record: of the step, with its `validation_loss` if it was evaluated.

        Raises:
            SaveFailedError: too many saves in a row have failed.
        """
        contents = {f"data/position-{jax.process_index():05}-of-{jax.process_count():05}.json": position.to_json()}
        if is_main_process() and "validation_loss" in record:
            contents[VALIDATION] = {"validation_loss": record["validation_loss"]}
        files = {name: json.dumps(content).encode() for name, content in contents.items()}
        self._checkpoints.save(int(record["step"]), items, {**self._files, **files}, self._hashes)

    def is_best(self, record: MetricsRecord) -> bool:
        """Whether the step of a record is to be saved because its validation loss is the lowest so far."""
        loss = record.get("validation_loss")
        if not self._keeps_best or loss is None or (self._lowest is not None and not loss < self._lowest):
            return False
        self._lowest = loss
        return True

    def close(self) -> None:
        """Wait for a save that is under way, whatever becomes of it; may be called by one process alone."""
        self._checkpoints.close()

    def finish(self, step: int) -> None:
        """Wait for a save that is under way.

        Raises:
            SaveFailedError: the step, the last, is not there.
        """
        self._checkpoints.wait()
        if step not in self._checkpoints.steps():
            raise SaveFailedError(f"step {step}, the last, could not be saved; see above")
