"""`prepare` with rules: what it keeps does not depend on workers, and a resume with other rules is refused."""

import json
import pickle
import random
from pathlib import Path

import command_runs
import pytest

from llama_jax.core.errors import UserError
from llama_jax.data.preparation.rules.perplexity import Perplexity
from llama_jax.evals import document_perplexity
from llama_jax.evals.document_perplexity import DocumentPerplexity

ENGLISH = (
    "This method returns a copy of the list in which the items are sorted. If the argument is not given, the default "
    "is used, and the function returns the same object. " * 6
)
NO_LANGUAGE = "".join(random.Random(0).sample(ENGLISH, len(ENGLISH)))


def test_text_has_a_lower_perplexity_than_its_shuffled_letters(tiny_run):
    measure = DocumentPerplexity(str(tiny_run), tokens=200)
    english, shuffled = measure(ENGLISH), measure(NO_LANGUAGE)
    assert 1 < english < 0.7 * shuffled
    rule = pickle.loads(pickle.dumps(Perplexity(measure, least=None, most=(english + shuffled) / 2)))
    assert rule.judged(ENGLISH).dropped is None
    assert rule.judged(NO_LANGUAGE).dropped == {"reason": "perplexity_high", "value": float(f"{shuffled:.4g}")}
    assert measure(ENGLISH) == measure(ENGLISH + " And what comes after the first two hundred tokens.")


def test_a_model_that_has_changed_since_is_refused(tiny_run, monkeypatch):
    measure = DocumentPerplexity(str(tiny_run), tokens=200)
    measure.identity = "another"
    with pytest.raises(UserError, match=r"--perplexity.model .*: has changed since the work began"):
        measure(ENGLISH)
    with pytest.raises(UserError, match=r"^--perplexity.model absent: no such file or directory"):
        DocumentPerplexity("absent", tokens=200)


def _written(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}
