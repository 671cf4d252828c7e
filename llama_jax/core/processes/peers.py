"""What the processes of a job know of each other while they compute: who answers, where each is, who holds up the rest.

It goes by a board that process 0 keeps, not by collectives, which wait for all."""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

from llama_jax.core.processes.patience import Unchanged


@dataclass(frozen=True)
class Notice:
    """What a process says of itself."""

    marks: int
    """Places that it has come to since the run was opened. All come to the same ones, so the fewest is the last."""
    place: str
    """Such as "step 12, computing"."""
    beat: int
    """Differs from that of the notice before."""
    waits: bool = False
    """Whether it is JAX that its main thread is in."""
    stack: str = ""
    """Of its main thread, if it is about to leave."""


class Fault(NamedTuple):
    """Who holds up the rest."""

    ranks: Sequence[int]
    what: str
    """That can be said of them: "is silent"."""


class Peers:
    """The processes of a job, as one of them sees them."""

    def __init__(
        self, rank: int, count: int, post: Callable[[str], None], read: Callable[[], Mapping[int, str]]
    ) -> None:
        """
        Args:
            rank: of this process.
            post: puts a text on the board, in place of the one before.
            read: the texts of all, by rank.
        """
        self.rank, self.count = rank, count
        self.rounds = 0
        """Times that the board has been read."""
        self.notices: Mapping[int, Notice] = {}
        """The newest of each process that takes part, by rank."""
        self.left: Collection[int] = ()
        """Those that take part no longer."""
        self._post, self._read = post, read
        self._silences: dict[int, Unchanged] = {}
        self._board = Unchanged()

    def exchange(self, notice: Notice | None) -> None:
        """Post a notice, and read those of all; None: this process takes part no longer. May take for ever."""
        self._post("" if notice is None else json.dumps(asdict(notice)))
        texts = self._read()
        for rank, text in texts.items():
            self._silences.setdefault(rank, Unchanged()).look(text)
        self.left = {rank for rank, text in texts.items() if not text}
        self.notices = {rank: Notice(**json.loads(text)) for rank, text in texts.items() if text}
        self.rounds += 1

    def silent(self, seconds: int | float) -> list[int]:
        """Those who take part, and of whom nothing was heard for so long. Called more often than every few seconds."""
        if self._board.look(self.rounds) >= seconds and self.rank != 0:
            return [0]
        others = [rank for rank in self.notices if rank != self.rank]
        return [rank for rank in others if self._silences[rank].seconds >= seconds]

    def fault(self, silent: Sequence[int]) -> Fault:
        """What holds up the rest, as far as the notices tell."""
        if silent:
            return Fault(silent, "is silent")
        if missing := [rank for rank in range(self.count) if rank not in self.notices and rank not in self.left]:
            return Fault(missing, "takes no part")
        least = min(notice.marks for notice in self.notices.values())
        behind = [rank for rank, notice in self.notices.items() if notice.marks == least]
        if len(behind) < len(self.notices):
            return Fault(behind, "is behind")
        busy = [rank for rank, notice in self.notices.items() if not notice.waits]
        if 0 < len(busy) < len(self.notices):
            return Fault(busy, "is where the others are, but does not wait")
        return Fault([], "all are at the same place; look at the devices, and at what connects them")
