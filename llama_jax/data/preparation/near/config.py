"""Settings of what repeats in other words."""

from dataclasses import dataclass

from llama_jax.core.errors import UserError


@dataclass(frozen=True)
class NearDuplicatesConfig:
    """Documents that are almost the same, by MinHash (arXiv:2107.06499)."""

    threshold: float | None = None
    """Documents with at least this Jaccard similarity, as their signatures estimate it, are joined in a group, of which
    the longest stays; 0.75 is a good value. None: nobody looks."""
    shingle: int = 5
    """Words in a shingle; documents are compared as sets of shingles."""
    bands: int = 14
    """Groups of rows; documents that agree in all rows of one band are compared."""
    rows: int = 8
    """Values of a signature in a band. More make it rarer that documents are compared, more bands make it likelier."""

    def __post_init__(self) -> None:
        where = "--near_duplicates"
        if self.threshold is not None and not 0 < self.threshold <= 1:
            raise UserError(f"{where}.threshold {self.threshold}: must be above 0 and at most 1")
        for name, most in (("shingle", 1000), ("bands", 1000), ("rows", 100)):
            if not 1 <= (value := getattr(self, name)) <= most:
                raise UserError(f"{where}.{name} {value}: must be from 1 to {most}")
