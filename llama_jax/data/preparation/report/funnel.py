"""What each step of a preparation took, in the order of the steps, in numbers and as lines for a terminal."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from llama_jax.core.recording.pages import visible
from llama_jax.core.text import aligned

_TOLD_SOURCES = 4
"""Sources that have a column of their own in a terminal; 80 characters hold no more."""


class Amount(NamedTuple):
    """Documents, and bytes of their text in UTF-8."""

    documents: int = 0
    bytes: int = 0

    def minus(self, other: "Amount") -> "Amount":
        return Amount(self.documents - other.documents, self.bytes - other.bytes)


class Step(NamedTuple):
    """One thing that documents, or lines of them, are taken out for."""

    name: str
    is_edit: bool
    """It takes out lines, and no document."""
    taken: Amount
    left: Amount
    """After this step."""
    by_source: dict[str, Amount]
    """What it took, of those sources that it took something of."""


class Funnel(NamedTuple):
    """A preparation from what was read to what was kept."""

    read: Amount
    kept: Amount
    read_by_source: dict[str, Amount]
    """In the order of their bytes, the most first."""
    kept_by_source: dict[str, Amount]
    steps: list[Step]

    def to_json(self) -> dict[str, Any]:
        """The sums over all sources."""
        steps = [
            {"name": step.name, "edits": step.is_edit, **step.taken._asdict(), "left": step.left._asdict()}
            for step in self.steps
        ]
        return {"read": self.read._asdict(), "steps": steps, "kept": self.kept._asdict()}


def funnel_of(told: Mapping[str, Any], order: Sequence[str] = ()) -> Funnel:
    """The funnel of a tally.

    Args:
        told: As `Tally.to_json` gives it.
        order: Names of reasons that belong to one step, in the order in which they are looked for there.
    """
    sources = told["sources"]
    read = {name: _amount(source.get("read")) for name, source in sources.items()}
    kept = {name: _amount(source.get("kept")) for name, source in sources.items()}
    largest = sorted(read, key=lambda name: (-read[name].bytes, name))
    left, steps = _sum(read.values()), []
    for kind, name in _in_order(told["steps"], order):
        by_source = {each: _amount(sources[each].get(kind, {}).get(name)) for each in largest}
        if kind == "edited":  # a document without some of its lines is still there
            by_source = {each: Amount(0, amount.bytes) for each, amount in by_source.items()}
        taken = _sum(by_source.values())
        left = left.minus(taken)
        found = {each: amount for each, amount in by_source.items() if any(amount)}
        steps.append(Step(name, kind == "edited", taken, left, found))
    return Funnel(
        _sum(read.values()),
        _sum(kept.values()),
        {name: read[name] for name in largest},
        {name: kept[name] for name in largest},
        steps,
    )


def _in_order(steps: Mapping[str, Mapping[str, Mapping[str, int]]], order: Sequence[str]) -> list[tuple[str, str]]:
    """(`edited` or `dropped`, name) of each thing that took something, once, edits of a step before what it drops."""
    places = {name: place for place, name in enumerate(order)}
    found = [
        (kind, name)
        for number in sorted(steps, key=int)
        for kind in ("edited", "dropped")
        for name in sorted(steps[number].get(kind, ()), key=lambda name: (places.get(name, -1), name))
    ]
    return list(dict.fromkeys(found))


def funnel_lines(funnel: Funnel) -> list[str]:
    """The funnel as a table for a terminal: a line for each step, a column for each of the largest sources."""
    sources = list(funnel.read_by_source)
    shown = sources if len(sources) <= _TOLD_SOURCES else sources[: _TOLD_SOURCES - 1]
    rest = sources[len(shown) :]
    heads = [] if len(sources) == 1 else [_short(name) for name in shown] + [f"{len(rest)} others"] * bool(rest)

    def row(name: str, all_: Amount, by_source: Mapping[str, Amount]) -> list[str]:
        cells = [by_source.get(each, Amount()).documents for each in shown]
        cells += [sum(by_source.get(each, Amount()).documents for each in rest)] * bool(rest)
        return [name, f"{all_.documents:,}", in_bytes(all_.bytes), *(f"{cell:,}" for cell in cells[: len(heads)])]

    steps = [row(f"- {titled(step)}", step.taken, step.by_source) for step in funnel.steps]
    rows = [row("read", funnel.read, funnel.read_by_source), *steps, row("kept", funnel.kept, funnel.kept_by_source)]
    return aligned([["", "documents", "text", *heads], *rows], 1)


def titled(step: Step) -> str:
    """The name of a step as people read it."""
    name = step.name.replace("_", " ")
    return f"{name}: lines" if step.is_edit else name


def in_bytes(size: int) -> str:
    """A number of bytes in few digits."""
    amount, unit = float(size), "B"
    for larger in ("kB", "MB", "GB", "TB", "PB"):
        if abs(amount) < 999.5:
            break
        amount, unit = amount / 1000, larger
    return f"{amount:.0f} {unit}" if unit == "B" or abs(amount) >= 99.95 else f"{amount:.1f} {unit}"


def _short(name: str) -> str:
    name = " ".join(visible(name).split())  # that a line of the table stays one
    return name if len(name) <= 16 else f"{name[:15]}…"


def _amount(counts: Mapping[str, int] | None) -> Amount:
    return Amount(counts["documents"], counts["bytes"]) if counts else Amount()


def _sum(amounts: Iterable[Amount]) -> Amount:
    found: Sequence[Amount] = list(amounts)
    return Amount(sum(each.documents for each in found), sum(each.bytes for each in found))
