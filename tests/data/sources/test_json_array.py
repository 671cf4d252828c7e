import json
import random

import numpy as np
import pytest

from llama_jax.data.sources.record_files import array_bounds


def elements(content: bytes, size: int) -> list[bytes]:
    chunks = ((start, content[start : start + size]) for start in range(0, len(content), size))
    bounds = np.concatenate(list(array_bounds(chunks)))
    return [content[start:end] for start, end in bounds]


def random_value(generator: random.Random, depth: int = 0):
    kind = generator.randrange(6 if depth < 3 else 4)
    if kind == 0:
        return generator.choice([None, True, 1.5, -3])
    if kind < 4:
        return "".join(generator.choices('ab\\"{}[],é\n', k=generator.randrange(9)))
    inner = [random_value(generator, depth + 1) for _ in range(generator.randrange(4))]
    return inner if kind == 4 else {f'k\\"{n}': value for n, value in enumerate(inner)}


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 10_000])
def test_elements_are_found_whatever_stands_in_strings_and_wherever_chunks_end(size):
    generator = random.Random(0)
    for _ in range(40):
        array = [random_value(generator) for _ in range(1 + generator.randrange(6))]
        for style in ({}, {"ensure_ascii": False, "indent": 1}):
            content = b"\xef\xbb\xbf \n" * (size > 5) + json.dumps(array, **style).encode() + b" \n"
            assert [json.loads(element) for element in elements(content, size)] == array


@pytest.mark.parametrize("backslashes", range(8))
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_runs_of_backslashes_escape_in_pairs_across_chunks(backslashes, size):
    text = "\\" * backslashes + '"],' + "\\" * backslashes
    assert [json.loads(element) for element in elements(json.dumps([text, text]).encode(), size)] == [text, text]


def test_nesting_needs_no_stack():
    assert len(elements(b"[" + b"[" * 100_000 + b"]" * 100_000 + b", 1]", 4096)) == 2


def test_an_empty_array_is_one_element_of_white_space():
    assert elements(b"[ ]", 2) == [b" "]
