"""Tokenizer files that could make a small text large, or match for long, work within bounds; the usual ones are not
slowed down by it."""

import base64
import json
import pickle
from typing import Any

import pytest
import tokenizers
from small_tokenizers import BESIDE, HARD_TEXTS, TALE, byte_level_file, llama2c_file

from llama_jax.core.errors import UserError
from llama_jax.data.tokenizers import (
    HuggingFaceTokenizer,
    SentencePieceTokenizer,
    hugging_face_files,
    load_tokenizer,
    tokenizer_from_files,
)
from llama_jax.data.tokenizers.guard.guarded_tokenizer import GuardedTokenizer
from llama_jax.data.tokenizers.guard.parts import check_replacements, is_bounded
from llama_jax.data.tokenizers.sentencepiece_model import Piece, PieceModel, piece_model_bytes, read_piece_model
from llama_jax.data.tokenizers.tokenizer import LONGEST_TOKEN

FILE: dict[str, Any] = json.loads(byte_level_file())
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
WORDS = {"type": "Split", "pattern": {"Regex": r"\w+|\s|[^\w\s]"}, "behavior": "Isolated", "invert": False}


def replace(pattern: dict[str, str] | str, content: str) -> dict[str, Any]:
    return {
        "type": "Replace",
        "pattern": {"String": pattern} if isinstance(pattern, str) else pattern,
        "content": content,
    }


def sequence(kind: str, *members: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", kind: list(members)}


def characters_map(longest: int) -> bytes:
    """A map with an empty trie and texts of 1 and of `longest` bytes."""
    return (0).to_bytes(4, "little") + b"a\0" + b"b" * longest + b"\0"


def message_field(number: int, content: bytes) -> bytes:
    """A field of a protocol buffer message, of 128 bytes to 16 KiB."""
    return bytes([number << 3 | 2, len(content) & 0x7F | 0x80, len(content) >> 7]) + content


def precompiled(longest: int) -> dict[str, Any]:
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(characters_map(longest)).decode()}


def doubled(times: int, letter: str = "a") -> dict[str, Any]:
    return sequence("normalizers", *[replace(letter, 2 * letter)] * times)


BOUNDED = {
    "as GPT-2 has it": {},
    "no parts": {"pre_tokenizer": None, "decoder": None},
    "as Llama 2 has it": {
        "normalizer": sequence("normalizers", {"type": "Prepend", "prepend": "▁"}, replace(" ", "▁")),
        "decoder": sequence("decoders", replace("▁", " "), {"type": "ByteFallback"}, {"type": "Fuse"}),
    },
    "a longer text for a short one, a few times": {"normalizer": doubled(4)},
    "Unicode's forms": {"normalizer": sequence("normalizers", {"type": "NFKC"}, {"type": "Lowercase"})},
    "a map of sentencepiece's": {"normalizer": precompiled(33)},
}


@pytest.mark.parametrize("kind", BOUNDED)
def test_usual_files_stay_in_this_process(kind) -> None:
    assert is_bounded(FILE | BOUNDED[kind])


@pytest.mark.parametrize("name", ["tokenizer", "tiktoken_tokenizer"])
def test_files_of_our_own_stay_in_this_process(name, request) -> None:
    content = json.loads(hugging_face_files(request.getfixturevalue(name))["tokenizer.json"])
    assert is_bounded(content)
    assert isinstance(HuggingFaceTokenizer(json.dumps(content).encode())._tokenizer, tokenizers.Tokenizer)


def with_model(**fields: Any) -> dict[str, Any]:
    return {"model": FILE["model"] | fields}


def split(expression: str) -> dict[str, Any]:
    return {"pre_tokenizer": WORDS | {"pattern": {"Regex": expression}}}


@pytest.mark.parametrize(
    "expression", [r"<(?=0x[0-9A-F]{2}>)|<(?=s>)|\[(?=INST\])", "a", r"a b|\|\*|x\-y", "▁|é", r"\.(?=\.)"]
)
def test_words_as_they_stand_are_no_danger(expression) -> None:
    assert is_bounded(FILE | split(expression))


@pytest.mark.parametrize(
    "expression",
    [
        "a+",
        "a*b",
        "(a)",
        "a?",
        "(a|b)+",
        "a{2}",
        "(?=a)",
        r"\w",
        r"\1",
        "[ab]",
        "a|",
        "",
        "a(?=b+)",
        "a(?=(b))",
        "(?<=a)b",
    ],
)
def test_any_other_expression_may_be_one(expression) -> None:
    assert not is_bounded(FILE | split(expression))


UNBOUNDED = {
    "a text doubled seven times": {"normalizer": doubled(7)},
    "one text for another of 100 times its length": {"normalizer": replace("a", "a" * 100)},
    "a text for nothing": {"normalizer": replace("", "b")},
    "a text for a pattern": {"normalizer": replace({"Regex": " +"}, "  ")},
    "a long text before each": {"normalizer": {"type": "Prepend", "prepend": "a" * 300}},
    "bytes as characters, again and again": {"normalizer": sequence("normalizers", *[BYTES] * 7)},
    "a map with a long text": {"normalizer": precompiled(300)},
    "an unknown normaliser": {"normalizer": {"type": "Reversed"}},
    "a pattern of its own": {"pre_tokenizer": sequence("pretokenizers", WORDS, BYTES)},
    "very many parts": {"pre_tokenizer": sequence("pretokenizers", *[{"type": "Whitespace"}] * 20)},
    "a decoder that doubles": {"decoder": sequence("decoders", *[replace("a", "aa")] * 7, BYTES)},
    "words of any length, tried in every way": with_model(type="WordPiece", max_input_chars_per_word=10**9),
    "a long end of every word": with_model(end_of_word_suffix="a" * 300),
    "a text given for itself twice": {
        "post_processor": {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}] * 2}
    },
    "members that stand under two names": {
        "pre_tokenizer": {"type": "Sequence", "normalizers": [], "pretokenizers": [WORDS]}
    },
    "a part without a type": {"pre_tokenizer": {"pattern": {"Regex": " "}, "behavior": "Isolated", "invert": False}},
    "a part that is none": {"decoder": ["ByteLevel"]},
    "a model without a type": {"model": {"vocab": {"a": 0}, "max_input_chars_per_word": 10**9}},
    "no model": {"model": None},
    "a long token": with_model(vocab=FILE["model"]["vocab"] | {"a" * 2000: 320}),
    "a long added token": {"added_tokens": [*FILE["added_tokens"], {"id": 320, "content": "a" * 2000}]},
}


@pytest.mark.parametrize("kind", UNBOUNDED)
def test_others_do_not(kind) -> None:
    assert not is_bounded(FILE | UNBOUNDED[kind])


WORKING = {
    "a pattern of its own": UNBOUNDED["a pattern of its own"],
    "a text doubled seven times": {"normalizer": doubled(7, "q")},
    "a decoder that doubles": {"decoder": sequence("decoders", *[replace("q", "qq")] * 7, BYTES)},
    "a text for a pattern": {"normalizer": replace({"Regex": " {2,}"}, " ")},
    "a long token": UNBOUNDED["a long token"],
}


@pytest.mark.parametrize("kind", WORKING)
def test_what_is_guarded_gives_the_ids_and_texts_of_the_library(kind) -> None:
    content = json.dumps(FILE | WORKING[kind]).encode()
    ours = HuggingFaceTokenizer(content, BESIDE)
    theirs = tokenizers.Tokenizer.from_buffer(content)
    theirs.no_truncation()
    theirs.no_padding()
    assert isinstance(ours._tokenizer, GuardedTokenizer)
    for text in [*HARD_TEXTS, TALE, "a q <think> <|eos|> b"]:
        theirs.encode_special_tokens = True
        ids = theirs.encode(text, add_special_tokens=False).ids
        assert ours.encode(text) == ids
        assert ours.decode(ids) == theirs.decode(ids)
        theirs.encode_special_tokens = False
        assert ours.encode(text, special=True) == theirs.encode(text, add_special_tokens=False).ids
    assert pickle.loads(pickle.dumps(ours)).encode(TALE) == ours.encode(TALE)


def test_names_given_beside_the_file_are_control_tokens_within_the_guard_too() -> None:
    content = json.dumps(FILE | UNBOUNDED["a pattern of its own"]).encode()
    beside = {"tokenizer_config.json": b'{"bos_token": "<|bos|>", "eos_token": "<think>"}'}
    tokenizer = HuggingFaceTokenizer(content, beside)
    assert (tokenizer.eos_id, tokenizer.special_tokens["<think>"]) == (2, 2)
    assert tokenizer.encode("<think>", special=True) == [2] and 2 not in tokenizer.encode("<think>")
    assert tokenizer.decode([2, *tokenizer.encode("cat")]) == "cat"


def test_what_is_added_later_is_known_within_the_guard() -> None:
    guarded = GuardedTokenizer(FILE | UNBOUNDED["a pattern of its own"])
    before = guarded.encode("mill", add_special_tokens=False).ids
    guarded.add_special_tokens([tokenizers.AddedToken("mill", special=True, normalized=False)])
    (added,) = guarded.encode("mill", add_special_tokens=False).ids
    assert guarded.get_added_tokens_decoder()[added].content == "mill"
    guarded.encode_special_tokens = True
    assert guarded.encode("mill", add_special_tokens=False).ids == before


def test_what_takes_too_long_or_too_much_is_refused_and_the_next_text_is_encoded() -> None:
    guarded = GuardedTokenizer(FILE | {"normalizer": doubled(16)}, seconds=0.3)
    with pytest.raises(UserError, match=r"take more than 0 s for 20 characters|ask for too much memory"):
        guarded.encode("a" * 20, add_special_tokens=False)
    assert guarded.decode(guarded.encode("cat b", add_special_tokens=False).ids, skip_special_tokens=True)
    with pytest.raises(UserError, match=r"^tokenizer.json: its normaliser.* ask for too much memory or time"):
        GuardedTokenizer(FILE | {"normalizer": doubled(16)}, memory=2**20)


def test_a_pattern_that_the_library_refuses_is_named_in_one_line() -> None:
    wrong = {"type": "Split", "pattern": {"Regex": "(("}, "behavior": "Isolated", "invert": False}
    with pytest.raises(
        UserError, match=r"^tokenizer here: tokenizer.json: the tokenizers library refuses it: Oniguruma error: end pat"
    ):
        tokenizer_from_files({"tokenizer.json": json.dumps(FILE | {"pre_tokenizer": wrong}).encode(), **BESIDE}, "here")


def test_a_map_of_sentencepiece_is_refused_by_the_longest_text_in_it(tokenizer, tmp_path) -> None:
    check_replacements(characters_map(256))
    with pytest.raises(ValueError, match="puts up to 257 bytes in place of a character; at most 256 may be"):
        check_replacements(characters_map(257))
    for field in (3, 5):  # what is done to a text, and to the text of ids
        spec = message_field(2, characters_map(257))
        extended = tokenizer.to_bytes() + message_field(field, spec)
        (tmp_path / "tokenizer.model").write_bytes(extended)
        with pytest.raises(UserError, match="its normaliser puts up to 257 bytes"):
            load_tokenizer(tmp_path / "tokenizer.model")


def test_a_piece_without_end_is_refused(tokenizer) -> None:
    model = read_piece_model(tokenizer.to_bytes())
    longer = PieceModel((*model.pieces, Piece("a" * (LONGEST_TOKEN + 1), -1.0, 1)))
    with pytest.raises(ValueError, match=r"has a piece of 16\d+ bytes; a piece may have 16384"):
        SentencePieceTokenizer(piece_model_bytes(longer, unk="<unk>", bos="<s>", eos="</s>"))
    content = llama2c_file([(b" ", 0.0), (b"a" * (LONGEST_TOKEN + 1), 0.0)])
    with pytest.raises(UserError, match="token 260 has 16385 bytes; a token may have 16384"):
        tokenizer_from_files({"tokenizer.bin": content}, "here")
