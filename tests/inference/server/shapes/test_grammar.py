"""Constraints on tokens, for every kind of tokenizer."""

import json
import random

import numpy as np
import pytest
from small_tokenizers import BESIDE, TALE, byte_level_file, llama2c_file, tiktoken_file

from llama_jax.core.errors import UserError
from llama_jax.data.tokenizers import (
    HuggingFaceTokenizer,
    Llama2cTokenizer,
    TiktokenTokenizer,
    hugging_face_files,
    train_tokenizer,
)
from llama_jax.inference.server.shapes.grammar import LARGEST_GRAMMAR, Grammars, TokenConstraint, json_grammar

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 30},
        "kind": {"enum": ["miller", "cat 🙂"]},
        "sons": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "maxItems": 3},
        "mill": {"anyOf": [{"$ref": "#/$defs/Mill"}, {"type": "null"}]},
    },
    "required": ["name", "kind", "sons", "mill"],
    "additionalProperties": False,
    "$defs": {"Mill": {"type": "object", "properties": {"old": {"type": "boolean"}}, "additionalProperties": False}},
}
WRITTEN = '{"name": "Zoë\\n", "kind": "cat 🙂", "sons": [1, 12], "mill": {"old": true}}'


def _tokenizers():
    pieces = train_tokenizer([TALE], 320)
    files = hugging_face_files(pieces)
    return [
        pieces,
        Llama2cTokenizer(llama2c_file([(b" ", 0.0)])),
        TiktokenTokenizer(tiktoken_file()),
        HuggingFaceTokenizer(byte_level_file(), BESIDE),
        HuggingFaceTokenizer(files["tokenizer.json"], {"tokenizer_config.json": files["tokenizer_config.json"]}),
    ]


@pytest.fixture(scope="module", params=_tokenizers(), ids=lambda tokenizer: type(tokenizer).__name__)
def tokenizer(request):
    return request.param


def _allowed(constraint: TokenConstraint) -> list[int]:
    mask = constraint.allowed()
    return np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist()


def _constraint(tokenizer, grammar: str) -> TokenConstraint:
    grammars = Grammars(tokenizer)
    grammars.check(grammar, "field")
    return grammars.constraint(grammar)


def test_what_a_schema_allows_is_allowed_and_ends_where_it_may(tokenizer):
    constraint, contents = _constraint(tokenizer, f"start: {json_grammar(PERSON)}"), tokenizer.token_bytes()
    left = WRITTEN.encode()
    while left:
        allowed = _allowed(constraint)
        assert not {*allowed} & {*tokenizer.stop_ids}
        fitting = [token for token in allowed if left.startswith(contents[token])]
        token = max(fitting, key=lambda token: len(contents[token]))
        constraint.push(token)
        left = left[len(contents[token]) :]
    assert {*_allowed(constraint)} == {*tokenizer.stop_ids}
    assert constraint.failure is None


def test_whatever_is_chosen_is_json_of_the_schema(tokenizer):
    rng = random.Random(5)
    constraint, ids = _constraint(tokenizer, f"start: {json_grammar(PERSON)}"), []
    while not {*(allowed := _allowed(constraint))} & {*tokenizer.stop_ids}:
        ids.append(rng.choice(allowed))
        constraint.push(ids[-1])
    found = json.loads(b"".join(tokenizer.token_bytes()[token] for token in ids))
    assert [*found] == ["name", "kind", "sons", "mill"]
    assert len(found["name"]) <= 30 and found["kind"] in ("miller", "cat 🙂")
    assert constraint.failure is None


def test_constraints_of_one_grammar_are_apart():
    grammars, grammar = Grammars(TiktokenTokenizer(tiktoken_file())), 'start: "ab" | "cd"'
    grammars.check(grammar, "field")
    first, second = grammars.constraint(grammar), grammars.constraint(grammar)
    first.push(ord("a"))
    assert (_allowed(first), _allowed(second)) == ([ord("b")], [ord("a"), ord("c")])


def test_an_answer_that_cannot_go_on_is_ended_and_says_so():
    pieces = [(b" ", 0.0)]
    tokenizer = Llama2cTokenizer(llama2c_file(pieces))._cut(100)  # no token for what is behind byte 96
    constraint = _constraint(tokenizer, 'start: "Az"')
    constraint.push(ord("A") + 3)
    assert _allowed(constraint) == [*tokenizer.stop_ids]
    assert constraint.failure is not None


def _nested(levels: int) -> dict:
    schema: dict = {"type": "null"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"not": {}}, 'field: Unimplemented keys: ["not"]'),
        ({"type": "array", "items": {"type": "string", "format": "colour"}}, "field: Unknown format: colour"),
        ({"type": "array", "uniqueItems": True}, 'field: Unimplemented keys: ["uniqueItems"]'),
        ({"$ref": "https://example.org/schema"}, "field: Resource 'https://example.org/schema' is not present"),
        ({"type": "integer", "minimum": 2, "maximum": 1}, "field: Unsatisfiable schema"),
        ({"type": "word"}, "field: Invalid type: word"),
        ({"x-guidance": {"lenient": True}, "not": {}}, 'field: Unimplemented keys: ["not"]'),
        ({"enum": ["x" * 100] * 700}, f"bytes as a grammar, at most {LARGEST_GRAMMAR} are allowed"),
        ({"allOf": [{"anyOf": [{"required": [f"{n}"]}, {"required": [f"b{n}"]}]} for n in range(20)]}, "too large"),
        ({"type": "integer", "multipleOf": 999_999_937}, "field: fuel exhausted"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(schema, message):
    with pytest.raises(UserError) as error:
        _constraint(TiktokenTokenizer(tiktoken_file()), f"start: {json_grammar(schema)}")
    assert message in str(error.value) and "\n" not in str(error.value)


def test_schemas_as_deep_as_a_body_may_be_are_served():
    constraint = _constraint(TiktokenTokenizer(tiktoken_file()), f"start: {json_grammar(_nested(60))}")
    assert _allowed(constraint) == [ord("[")]
