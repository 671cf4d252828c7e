"""Rules that are a bound on a number: what is measured of a page, and within what it has to be."""

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

from llama_jax.data.preparation.rules.page import Page
from llama_jax.data.preparation.rules.rule import KEPT, Judgement


class Bound(NamedTuple):
    """A rule that keeps a page of which a number is within bounds, both inclusive."""

    name: str
    """Of the rule, and the reason of what it drops."""
    measure: Callable[[Page], float]
    least: float = -math.inf
    most: float = math.inf


def judged_by(bounds: Iterable[Bound], page: Page) -> Judgement:
    """What the first bound that is not kept says, with the number that was measured."""
    for bound in bounds:
        value = bound.measure(page)
        if not bound.least <= value <= bound.most:
            return Judgement(dropped={"reason": bound.name, "value": round(value, 4)})
    return KEPT
