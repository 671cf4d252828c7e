"""How well a language model predicts a document, with bounds on it. Knows no model: it is given a function."""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from llama_jax.data.preparation.rules.rule import KEPT, Judgement, Rule


@runtime_checkable
class PerplexityOf(Protocol):
    """A language model as a measure of texts. Picklable; says the same of a text in every process."""

    @property
    def identity(self) -> str:
        """What the model is, by the content of it."""
        ...

    def __call__(self, text: str) -> float:
        """The perplexity of a text, by token."""
        ...


class Perplexity(Rule):
    """Measures, and drops what is out of bounds: much above is no language, much below says little (CCNet,
    arXiv:1911.00359, section 3.4, keeps a head by it).

    Args:
        perplexity: the measure; called only on texts that no rule before has dropped.
        least: None: no bound.
        most: the same.
    """

    name = "perplexity"

    def __init__(self, perplexity: PerplexityOf, least: float | None, most: float | None) -> None:
        self._perplexity = perplexity
        self._least, self._most = least, most

    @property
    def bounds(self) -> Mapping[str, Sequence[float]]:
        return {"perplexity": [bound for bound in (self._least, self._most) if bound is not None]}

    def judged(self, text: str) -> Judgement:
        if not text.strip():
            return KEPT
        value = float(f"{self._perplexity(text):.4g}")  # no more digits than machines agree on
        measures = {"perplexity": value}
        if self._most is not None and value > self._most:
            return Judgement({"reason": "perplexity_high", "value": value}, measures=measures)
        if self._least is not None and value < self._least:
            return Judgement({"reason": "perplexity_low", "value": value}, measures=measures)
        return Judgement(measures=measures)
