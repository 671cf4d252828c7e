"""Text: tables for people, and how alike two texts are."""

import re
from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]], words: int) -> list[str]:
    """Rows of a table, the first `words` columns aligned to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if index < words else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def rouge_words(text: str) -> list[str]:
    """Runs of a-z and 0-9 in lower case, not stemmed, as in the package rouge-score."""
    return re.findall("[a-z0-9]+", text.lower())


def rouge_l(reference: str, answer: str) -> float:
    """ROUGE-L (Lin 2004, section 3.1): F1 of the longest common subsequence of `rouge_words`, between 0 and 1. Of many
    texts, see `similarity.SimilarityIndex`."""
    first, second = rouge_words(reference), rouge_words(answer)
    common = [0] * (len(second) + 1)  # of the words of the first text so far and each beginning of the second
    for word in first:
        diagonal = 0
        for index, other in enumerate(second, 1):
            longest = diagonal + 1 if word == other else max(common[index], common[index - 1])
            diagonal, common[index] = common[index], longest
    return 2 * common[-1] / (len(first) + len(second)) if common[-1] else 0.0
