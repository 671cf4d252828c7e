"""How often the rule on languages is right: `python measure_languages.py DIRECTORY`, with files of sentences, one a
line, that are named for their language, such as `de.txt`. It wrote the table in llama_jax/data/README.md, from
`language-testdata/sentences` of https://github.com/pemistahl/lingua-py (75 languages, about 1,000 sentences each)."""

import sys
import time
from collections import Counter
from pathlib import Path

from llama_jax.data.preparation.rules.languages import language, sample

LLAMA = (
    *("bg", "ca", "cs", "da", "de", "en", "es", "fr", "hr", "hu"),
    *("it", "nl", "pl", "pt", "ro", "ru", "sl", "sr", "sv", "uk"),
)
"""The languages of Wikipedia that LLaMA was trained on (arXiv:2302.13971, section 2.1)."""
SENTENCES = (1, 5, 10)


def main(directory: Path) -> None:
    """Print a row for each language: right of all documents of so many sentences, and what the others are taken for."""
    print("| |", " | ".join(f"{count} sentence{'s' * (count > 1)}" for count in SENTENCES), "| taken for |")
    size = seconds = 0
    for code in LLAMA:
        lines = [line for line in (directory / f"{code}.txt").read_text().splitlines() if line.strip()]
        row, mistaken = [], Counter[str]()
        for count in SENTENCES:
            documents = [" ".join(lines[start : start + count]) for start in range(0, len(lines) - count + 1, count)]
            started = time.perf_counter()
            told = [language(sample(document))[0] for document in documents]
            seconds += time.perf_counter() - started
            size += sum(len(sample(document).encode()) for document in documents)
            row.append(f"{100 * told.count(code) / len(told):.1f} %")
            mistaken.update(each for each in told if each != code)
        others = ", ".join(f"{other} {times}" for other, times in mistaken.most_common(3))
        print(f"| {code} |", " | ".join(row), f"| {others} |")
    print(f"{size / seconds / 1e6:.2f} MB/s")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
