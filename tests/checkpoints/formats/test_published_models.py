"""Directories of published models, written as every version of transformers and other tools write them, have the logits
and ids that transformers gives them, or are refused by one line that names what is wrong: nothing differs silently.

`tests/oracle/record_published.py` recorded the numbers."""

import functools
from pathlib import Path

import numpy as np
import pytest
from formula_weights import ORACLE
from published_cases import CASES
from published_models import TEXTS, TOKENS, picked, small
from small_weights import logits
from sweeps import some

from llama_jax.checkpoints.formats.hugging_face import open_hugging_face
from llama_jax.core.errors import UserError
from llama_jax.data.tokenizers import tokenizer_from_files

DEFAULT = (
    "TinyLlama",
    "Llama 3.1",
    "SmolLM2",
    "Mistral Nemo",
    "a base in both spellings",
    "Llama 3.1 by transformers 5",
    "linear by 1 beside none",
    "the head alone",
    "angles in a shard",
    "a model without its head",
)


@functools.cache
def recorded() -> dict[str, np.ndarray]:
    return dict(np.load(ORACLE / "published.npz"))


@pytest.fixture
def directory(request, tmp_path: Path) -> Path:
    model, change, _ = CASES[request.param]
    files = {
        name.removeprefix("files/"): array.tobytes() for name, array in recorded().items() if name.startswith("files/")
    }
    made = small(model, files)
    change(made)
    return made.write(tmp_path / "model")


OPENED = [name for name, (_, _, refused) in CASES.items() if refused is None]
REFUSED = [name for name, (_, _, refused) in CASES.items() if refused is not None]


@pytest.mark.parametrize("directory", some(OPENED, DEFAULT), indirect=True)
def test_a_published_model_has_the_logits_of_transformers(request, directory: Path) -> None:
    name = request.node.callspec.params["directory"]
    weights = open_hugging_face(directory)
    found = picked(logits(weights, TOKENS)[..., : weights.config.vocab_size])
    np.testing.assert_allclose(found, recorded()[f"{name}/logits"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("directory", OPENED, indirect=True)
def test_a_published_model_opens_and_its_tokenizer_has_the_ids_of_transformers(request, directory: Path) -> None:
    """But for what data/README.md says: BOS opens the texts of a tokenizer.model unless it is told not to."""
    name = request.node.callspec.params["directory"]
    tokenizer = tokenizer_from_files(open_hugging_face(directory).files, str(directory))
    assert tokenizer.adds_bos == (recorded()[f"{name}/opens"] or name == "no tokenizer_config")
    for place, text in enumerate(TEXTS):
        assert tokenizer.encode(text) == recorded()[f"{name}/ids/{place}"].tolist(), text


@pytest.mark.parametrize("directory", REFUSED, indirect=True)
def test_what_contradicts_itself_or_is_not_read_is_refused_by_its_name(request, directory: Path) -> None:
    _, _, pattern = CASES[request.node.callspec.params["directory"]]
    with pytest.raises(UserError, match=pattern or "") as raised:
        open_hugging_face(directory)
    assert str(raised.value).startswith(str(directory)) and "\n" not in str(raised.value)


def test_the_sweep_is_wide_and_its_numbers_tell_rotary_settings_apart() -> None:
    assert len(CASES) >= 60 and len({model for model, _, _ in CASES.values()}) >= 12
    different = {"Llama 3.1": "a scaling by 1", "Code Llama": "two bases", "linear by 1": "linear beside none"}
    for one, other in different.items():
        assert np.abs(recorded()[f"{one}/logits"] - recorded()[f"{other}/logits"]).max() > 0.1
