"""What becomes of records that cannot be used, in every command that reads data: they are counted by reason, the first
ones are named with their place, and more than a share of a source ends the work. Does not know what makes them bad."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Literal

from llama_jax.core.errors import UserError
from llama_jax.data.sources.documents import BadRecordError

NOTES = 5
"""Bad records that are named; the others are only counted."""


class BadRecords:
    """The bad records of one source, counted while it is read.

    Args:
        source: As the user named it.
        policy: `fail` ends the work at the first.
        most: Share of the records of the source that may be bad.
        settings: How the user writes the settings of policy and share, but for `bad_records` and `max_bad_fraction`;
            None: there are none.
        say: Told the first few, a line each.
    """

    reasons: Counter[str]
    """How many there are so far, by reason."""

    def __init__(
        self,
        source: str,
        policy: Literal["skip", "fail"],
        most: float,
        *,
        settings: str | None = "data.",
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._source, self._policy, self._most, self._settings, self._say = source, policy, most, settings, say
        self._first: BadRecordError | None = None
        self.reasons = Counter()

    @property
    def total(self) -> int:
        """How many there are so far."""
        return self.reasons.total()

    def note(self, error: BadRecordError) -> None:
        """Count one.

        Raises:
            UserError: none is allowed.
        """
        if self._policy == "fail":
            why = "" if self._settings is None else f" ({self._settings}bad_records is fail)"
            raise UserError(f"{error}{why}") from None
        self._first = self._first or error
        self.reasons[error.reason] += 1
        if self.total <= NOTES:
            self._say(f"bad record skipped: {error}{'; further ones are only counted' * (self.total == NOTES)}")

    def check(self, records: int, kind: str = "documents") -> None:
        """Say whether the source can be used, of which all `records` were read.

        Args:
            kind: What its records are.

        Raises:
            UserError: too many of them are bad, or all.
        """
        if self._first is not None and self.total == records:
            raise UserError(
                f"{self._source}: holds nothing that can be used ({counted(self.reasons)}), such as {self._first}"
            )
        check_bad_fraction(
            self._source, self.reasons, records, self._most, settings=self._settings, kind=kind, example=self._first
        )


def check_bad_fraction(
    source: str,
    reasons: Counter[str],
    records: int,
    most: float,
    *,
    settings: str | None = "data.",
    kind: str = "documents",
    example: object = None,
) -> None:
    """Refuse a source of which too many records are bad; `example` is one of them, others as `BadRecords` has it.

    Args:
        records: How many were read, the bad ones among them.

    Raises:
        UserError: more than the share `most` of them are.
    """
    if (bad := reasons.total()) > most * records:
        setting, remedy = ("", "") if settings is None else (f"{settings}max_bad_fraction: ", ", or allow more")
        such = "" if example is None else f"such as {example}; "
        raise UserError(
            f"{setting}{bad:,} of {records:,} {kind} of {source} cannot be used "
            f"({counted(reasons)}), more than {most:g} of them; {such}repair the source{remedy}"
        )


def counted(reasons: Mapping[str, int]) -> str:
    """Numbers of records by reason, as text, the most first."""
    return ", ".join(f"{number:,} {reason}" for reason, number in Counter(reasons).most_common())
