"""Services that show the numbers of a run: TensorBoard, and Weights & Biases where that is asked for."""

import os
import re
import secrets
import socket
import struct
import time
from collections.abc import Callable, Mapping
from typing import Any

from etils import epath

from llama_jax.core import tree
from llama_jax.core.errors import UserError
from llama_jax.core.files import GrowingFile, is_remote, write_whole
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
        self._file: GrowingFile | None = None
        if is_remote(directory):
            say(f"TensorBoard files are not written to {directory}; metrics.jsonl there has the same numbers")
            return
        now = time.time_ns()
        name = f"events.out.tfevents.{now // 10**9:010}.{socket.gethostname()}.{os.getpid()}.{now % 10**9}"
        epath.Path(directory).mkdir(parents=True, exist_ok=True)
        # Not by the package's own writer: on a full disk that stands still, and the run with it.
        self._file = GrowingFile(epath.Path(directory) / name)
        self._add(file_version="brain.Event:2")
        self._add(step=resume_step + 1, session_log={"status": "START"})

    def write(self, record: MetricsRecord) -> None:
        """Add the scalars of one step."""
        if self._file is not None:
            numbers = {re.sub(r"[^-/\w.]", "_", name): value for name, value in tree.flatten(record).items()}
            scalars = [{"tag": name, "simple_value": value} for name, value in numbers.items() if name != "step"]
            self._add(step=record["step"], summary={"value": scalars})

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def _add(self, **event: Any) -> None:
        """Append an event as a TFRecord: length, its checksum, content, its checksum."""
        from tensorboardX.crc32c import crc32c  # 0.3 s that only training should pay
        from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]

        def with_checksum(content: bytes) -> bytes:
            checksum = crc32c(content)
            rotated = (checksum >> 15 | checksum << 17) + 0xA282EAD8
            return content + struct.pack("<I", rotated & 0xFFFFFFFF)

        content = Event(wall_time=time.time(), **event).SerializeToString()
        assert self._file is not None
        self._file.append(with_checksum(struct.pack("<Q", len(content))) + with_checksum(content))


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
