"""Rules that are a bound on a number: what is measured of a page, and within what it has to be."""

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

from llama_jax.data.preparation.rules.page import Page
from llama_jax.data.preparation.rules.rule import Judgement


class Bound(NamedTuple):
    """A rule that keeps a page of which a number is within bounds, both inclusive."""

    name: str
    """Of the rule, and the reason of what it drops."""
    measure: Callable[[Page], float]
    """Never below 0."""
    least: float = -math.inf
    most: float = math.inf

    @property
    def values(self) -> list[float]:
        """The bounds that there are."""
        return [float(value) for value in (self.least, self.most) if math.isfinite(value)]


def judged_by(bounds: Iterable[Bound], page: Page) -> Judgement:
    """What the first bound that is not kept says, with what was measured until then."""
    measures: dict[str, float] = {}
    for bound in bounds:
        value = bound.measure(page)
        measures[bound.name] = float(value)
        if not bound.least <= value <= bound.most:
            return Judgement(dropped={"reason": bound.name, "value": round(value, 4)}, measures=measures)
    return Judgement(measures=measures)
