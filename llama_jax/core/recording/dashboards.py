"""Services that show the numbers of a run: TensorBoard, and Weights & Biases where that is asked for."""

import secrets
from collections.abc import Callable, Mapping
from typing import Any

from etils import epath

from llama_jax.core import tree
from llama_jax.core.errors import UserError
from llama_jax.core.files import is_remote, write_whole
from llama_jax.core.recording.metrics import MetricsRecord


class TensorBoard:
    """Event files for TensorBoard: one scalar for each number of a record."""

    def __init__(self, directory: epath.PathLike, resume_step: int, say: Callable[[str], None]) -> None:
        """Continue after step `resume_step`; TensorBoard then hides what an earlier run of the process wrote after it.

        Args:
            directory: made if missing. On a remote path nothing is written, and `say` is told so.
            resume_step: the last step that is part of the run.
            say: prints one line.
        """
        self._writer: Any = None
        if is_remote(directory):
            say(f"TensorBoard files are not written to {directory}; metrics.jsonl there has the same numbers")
            return
        from tensorboardX import SummaryWriter  # 0.3 s that only training should pay

        self._writer = SummaryWriter(logdir=str(directory), purge_step=resume_step + 1)

    def write(self, record: MetricsRecord) -> None:
        """Add the scalars of one step."""
        for name, value in tree.flatten(record).items():
            if self._writer is not None and name != "step":
                self._writer.add_scalar(name, value, global_step=record["step"])

    def close(self) -> None:
        """Flush and close the files."""
        if self._writer is not None:
            self._writer.close()


class WeightsAndBiases:
    """A run on Weights & Biases with the numbers of each record. The only sink that contacts another machine; imports
    the package when one is made."""

    def __init__(self, directory: epath.PathLike, project: bool | str, config: Mapping[str, Any]) -> None:
        """Begin a run there, or continue the one that this run directory began.

        Its id is kept in `wandb_id.txt`; steps that it already has, up to the one before an interruption, it keeps as
        they are. Neither source code nor what the terminal shows is sent.

        Args:
            directory: the run directory, which gives the run its name; files of the package go below it (those of a
                remote one below the current directory).
            project: PROJECT or ENTITY/PROJECT; True: `llama_jax`.
            config: the configuration, as plain values.

        Raises:
            UserError: the package is missing, or its servers refuse.
        """
        try:
            import wandb
        except ImportError:
            raise UserError("tracking.wandb: needs the package wandb; pip install 'llama_jax[wandb]'") from None
        entity, _, name = ("llama_jax" if project is True else str(project)).rpartition("/")
        directory = epath.Path(directory)
        id_file = directory / "wandb_id.txt"
        if not id_file.exists():
            write_whole(id_file, f"{secrets.token_hex(6)}\n")
        try:
            self._run = wandb.init(
                entity=entity or None,
                project=name,
                id=id_file.read_text().strip(),
                resume="allow",
                name=directory.name,
                dir=None if is_remote(directory) else str(directory),
                config=dict(config),
                settings=wandb.Settings(console="off", disable_git=True, save_code=False),
            )
        except wandb.Error as error:
            raise UserError(f"tracking.wandb: {error}; log in by `wandb login`, or set WANDB_MODE=offline") from None

    def write(self, record: MetricsRecord) -> None:
        """Hand the numbers of one step over; they are sent by another process."""
        numbers = {name: value for name, value in record.items() if name != "step" and value is not None}
        self._run.log(numbers, step=record["step"])

    def close(self) -> None:
        """Send what is left."""
        self._run.finish()
