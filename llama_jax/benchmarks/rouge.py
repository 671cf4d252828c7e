"""`benchmark rouge`: how fast texts find the most similar of a pool, as Self-Instruct's filter asks for each candidate,
beside the package rouge-score doing the same comparisons."""

import json
import os
import random
import sys
import time
import tracemalloc
from collections.abc import Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any

from etils import epath

from llama_jax.benchmarks.config import RougeConfig
from llama_jax.core.files import write_whole
from llama_jax.core.text import rouge_words

if TYPE_CHECKING:
    from llama_jax.core.similarity import SimilarityIndex

_CHECKED_POOL, _CHECKED = 1000, 20
"""Texts with which so many others are compared by both: the published one takes a second for 20,000 comparisons."""


def measure_rouge(config: RougeConfig) -> dict[str, Any]:
    """Seconds and memory for each size of the pool, and how many times the comparisons of rouge-score take on all
    cores, if the package is there; kept in rouge.json."""
    stream = sys.stderr if config.json else sys.stdout
    draw = random.Random(config.seed)
    words, lengths = _starter_words()
    candidates = _texts(draw, words, lengths, config.candidates)
    result: dict[str, Any] = {"candidates": config.candidates, "cores": os.cpu_count(), "pools": {}}
    result |= _published(candidates[:_CHECKED], _texts(draw, words, lengths, _CHECKED_POOL))
    for size in config.pools:
        pool = _texts(draw, words, lengths, size)
        found = _measured(pool, candidates)
        line = f"pool of {size:,}: {len(candidates):,} in {found['seconds']:.2f} s, {found['megabytes']:.0f} MB"
        if (each := result["published_microseconds"]) is not None:
            theirs = size * len(candidates) * each * 1e-6 / (os.cpu_count() or 1)
            found |= {"published_seconds": theirs, "times": theirs / found["seconds"]}
            line += f"; rouge-score on {os.cpu_count()} cores {theirs:.0f} s, {found['times']:,.0f} times as long"
        print(line, file=stream, flush=True)
        result["pools"][str(size)] = found
    file = epath.Path(config.output) / "rouge.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, json.dumps(result, indent=2) + "\n")
    print(f"kept in {file}", file=stream)
    if config.json:
        print(json.dumps(result))
    return result


def _measured(pool: Sequence[str], candidates: Sequence[str]) -> dict[str, float]:
    """Seconds to compare all candidates with the pool, and to make it; what it takes in memory."""
    started = time.perf_counter()
    index = _index(pool)
    made = time.perf_counter()
    for text in candidates:
        index.most_similar(text)
    ended = time.perf_counter()
    del index
    tracemalloc.start()  # which slows everything down, so that this is another one
    index = _index(pool)
    size = tracemalloc.get_traced_memory()[0] / 1e6
    tracemalloc.stop()
    del index
    return {"seconds": ended - made, "seconds_to_make": made - started, "megabytes": size}


def _published(candidates: Sequence[str], pool: Sequence[str]) -> dict[str, Any]:
    """Microseconds that rouge-score takes for a comparison of words, on one core, as Stanford Alpaca's code calls it;
    and the largest difference to our values. None without the package."""
    try:
        from rouge_score import rouge_scorer  # an extra
    except ImportError:
        return {"published_microseconds": None, "largest_difference": None}
    index = _index(pool)
    split = [rouge_words(text) for text in pool]
    seconds, difference = 0.0, 0.0
    for text in candidates:
        words = rouge_words(text)
        started = time.perf_counter()
        theirs = [rouge_scorer._score_lcs(words, other).fmeasure for other in split]
        seconds += time.perf_counter() - started
        ours = dict(index.most_similar(text, len(pool)))
        difference = max(difference, *(abs(value - ours.get(number, 0.0)) for number, value in enumerate(theirs)))
    each = seconds / (len(candidates) * len(pool))
    return {"published_microseconds": each * 1e6, "largest_difference": difference}


def _index(pool: Sequence[str]) -> "SimilarityIndex":
    from llama_jax.core.similarity import SimilarityIndex  # only here: no other benchmark needs its library

    index = SimilarityIndex(rouge_words)
    for text in pool:
        index.add(text)
    return index


def _starter_words() -> tuple[list[str], list[int]]:
    """All words of the starter instructions, as often as they occur, and the lengths of the instructions."""
    content = resources.files("llama_jax.data.instructions").joinpath("starter_instructions.json").read_bytes()
    split = [rouge_words(record["instruction"]) for record in json.loads(content)]
    return [word for words in split for word in words], [len(words) for words in split]


def _texts(draw: random.Random, words: Sequence[str], lengths: Sequence[int], count: int) -> list[str]:
    """Texts with the lengths and the words of instructions, and the half of each a stretch of one of them."""
    texts = []
    for _ in range(count):
        length = draw.choice(lengths)
        start = draw.randrange(len(words))
        stretch = list(words[start : start + length // 2])
        texts.append(" ".join(stretch + draw.choices(words, k=length - len(stretch))))
    return texts
