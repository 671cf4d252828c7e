"""What a run writes down of each step, and says at its end."""

import dataclasses

from llama_jax.checkpoints.steps.folders import best_step, validation_loss
from llama_jax.core.processes.distributed import is_main_process
from llama_jax.core.recording.curves import draw_curves
from llama_jax.core.recording.dashboards import TensorBoard, WeightsAndBiases
from llama_jax.core.recording.metrics import JsonLines, MetricsRecord, Sink, read_metrics
from llama_jax.core.recording.terminal import Terminal
from llama_jax.core.run import RunDirectory
from llama_jax.runs.config import RunConfig


class Recorder:
    """Sends the record of each step to every sink, on the main process.

    Args:
        first: the step that the run resumes from; what an earlier life wrote of later ones is dropped.
    """

    def __init__(self, config: RunConfig, run: RunDirectory, first: int) -> None:
        self._sinks: list[Sink] = []
        if not is_main_process():
            return
        tracking = config.tracking
        self._sinks += [JsonLines(run.metrics, first), Terminal(config.training.steps, tracking.log_every, run.say)]
        if tracking.tensorboard:
            self._sinks.append(TensorBoard(run.tensorboard, first, run.say))
        if tracking.wandb:
            self._sinks.append(WeightsAndBiases(run.path, tracking.wandb, dataclasses.asdict(config)))

    def record(self, record: MetricsRecord) -> None:
        """Take the record of the next step."""
        for sink in self._sinks:
            sink.write(record)

    def close(self) -> None:
        """Write what is left."""
        for sink in self._sinks:
            sink.close()


def summarize(config: RunConfig, run: RunDirectory) -> None:
    """Draw the curves, and say which step is the best."""
    if not is_main_process():
        return
    draw_curves(read_metrics(run.metrics), run.curves)
    if config.checkpoints.keep_best and (step := best_step(run.checkpoints)) is not None:
        loss = validation_loss(run.checkpoints, step)
        run.say(f"lowest validation loss: {loss:.4f} at step {step} (--step best uses that checkpoint)")
