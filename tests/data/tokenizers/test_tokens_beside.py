"""Tokens that stand beside a tokenizer, and Unigram tokenizers: the ids of transformers, recorded by
`tests/oracle/record_tokenizers.py`; and what is refused."""

import base64
import io
import json
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
from small_tokenizers import tiktoken_file

from llama_jax.core.errors import UserError
from llama_jax.data.instructions.chat import encode_chat
from llama_jax.data.tokenizers import (
    HuggingFaceTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
    files_of_vocabulary,
    hugging_face_files,
    meta_files,
    tokenizer_from_files,
    vocabulary_of,
)

RECORDED = json.loads((Path(__file__).parents[2] / "oracle" / "transformers_tokenizers.json").read_text())
CASES = RECORDED["cases"]
MODELS = {name: base64.b64decode(model) for name, model in RECORDED["models"].items()}
START, END = "<|im_start|>", "<|im_end|>"
SIZE = 384


# A space after a control token, where another is put before that text: transformers makes one of the two.
for case in ("legacy",):
    CASES[case]["texts"] = {text: ids for text, ids in CASES[case]["texts"].items() if f"{START} " not in text}


def files_of(name: str) -> dict[str, bytes]:
    """The files of a recorded case."""
    case = CASES[name]
    files = {file: json.dumps(content).encode() for file, content in case["files"].items()}
    return files if case["model"] is None else {"tokenizer.model": MODELS[case["model"]], **files}


def opened(name: str) -> Tokenizer:
    return tokenizer_from_files(files_of(name), "here")


def beside(**files: object) -> Tokenizer:
    """The sentencepiece model with these JSON files beside it."""
    made = {name.replace("__", "."): json.dumps(content).encode() for name, content in files.items()}
    return tokenizer_from_files({"tokenizer.model": MODELS["bpe"], **made}, "here")


@pytest.mark.parametrize("name", CASES)
def test_ids_are_those_of_transformers(name):
    made = opened(name)
    for text, ids in CASES[name]["texts"].items():
        assert made.encode(text, special=True) == ids, text
    if "chat" in CASES[name]:
        assert encode_chat(made, RECORDED["chat"]) == CASES[name]["chat"]


@pytest.mark.parametrize("name", CASES)
def test_an_export_gives_the_same_ids_to_whoever_takes_the_file_as_it_is(name):
    files = hugging_face_files(opened(name))
    assert json.loads(files["tokenizer_config.json"])["tokenizer_class"] == "PreTrainedTokenizerFast"
    library = tokenizers.Tokenizer.from_buffer(files["tokenizer.json"])
    again = tokenizer_from_files(files, "there")
    for text, ids in CASES[name]["texts"].items():
        assert library.encode(text, add_special_tokens=False).ids == again.encode(text, special=True) == ids, text
    assert again.special_tokens == opened(name).special_tokens


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case["model"] == "bpe"])
def test_gguf_has_the_tokens_with_their_names(name):
    before = opened(name)
    vocabulary = vocabulary_of(before)
    assert list(vocabulary.tokens[SIZE:]) == [token for token, i in before.whole_tokens.items() if i >= SIZE]
    after = tokenizer_from_files(files_of_vocabulary(vocabulary), "there")
    control = {name for name in before.special_tokens if name != "<unk>"}
    assert {name: after.special_tokens[name] for name in control} == {n: before.special_tokens[n] for n in control}
    assert after.encode("The small boat") == before.encode("The small boat")


def test_metas_code_finds_all_tokens_in_the_model_file():
    for name in ("both", "added_tokens.json", "not special"):
        before = opened(name)
        files = meta_files(before)
        processor = sentencepiece.SentencePieceProcessor(model_proto=files["tokenizer.model"])
        assert [processor.id_to_piece(token) for token in (1, SIZE, SIZE + 1)] == ["<s>", END, START]
        assert processor.get_piece_size() == before.vocab_size
        assert processor.is_control(SIZE) == (END in before.special_tokens)
        after = tokenizer_from_files(files, "there")
        assert after.encode(f"{START} a{END}", special=True) == before.encode(f"{START} a{END}", special=True)
        # Of Meta's two files alone.
        alone = tokenizer_from_files({"tokenizer.model": files["tokenizer.model"]}, "there")
        assert alone.encode("a boat") == before.encode("a boat")
    plain = SentencePieceTokenizer(MODELS["bpe"])
    assert meta_files(plain) == plain.files()


def test_tokens_beside_end_answers():
    made = opened("eos")
    assert (made.eos_id, made.stop_ids) == (SIZE, (SIZE,))
    stops = {"eos_token_id": [2, SIZE]}
    made = beside(added_tokens__json={END: SIZE, START: SIZE + 1}, generation_config__json=stops)
    assert made.stop_ids == (2, SIZE)


def test_what_a_template_writes_is_no_text_of_a_user():
    made = opened("added_tokens.json")
    assert SIZE not in made.encode(f"a {END} b") and made.decode(made.encode(f"a {END} b")) == f"a {END} b"
    assert made.decode(made.encode(f"a{END}", special=True)) == "a"
    message = [{"role": "user", "content": f"{END} apples"}]
    assert encode_chat(made, message, add_generation_prompt=False).count(SIZE) == 1


def test_files_that_add_nothing_leave_the_model_to_sentencepiece():
    names = {"added_tokens_decoder": {"1": {"content": "<s>", "special": True}}, "eos_token": "</s>"}
    made = beside(tokenizer_config__json=names)
    assert isinstance(made, SentencePieceTokenizer)
    assert made.files() == tokenizer_from_files(made.files(), "here").files()


def test_a_space_before_a_text_is_kept():
    made, plain = opened("both"), SentencePieceTokenizer(MODELS["bpe"])
    for text in (" apples", "  a b", "\n a", "a  <s> b"):
        assert made.encode(text) == plain.encode(text)
        assert made.decode(made.encode(text)) == text


def test_a_space_after_a_control_token_is_kept_too():
    made, plain = opened("legacy"), SentencePieceTokenizer(MODELS["bpe"])
    assert made.encode(f"{START} a{END}b", special=True) == [385, *plain.encode(" a"), 384, *plain.encode("b")]


def test_llama3s_control_tokens_have_the_names_that_are_stated():
    """261 ranks, then 256 control tokens; 517 is the first id behind them."""
    names = {"264": "<tool>", "517": END, "518": START}
    config: dict = {"added_tokens_decoder": {n: {"content": name, "special": True} for n, name in names.items()}}
    files = {
        "tokenizer.model": tiktoken_file(),
        "tokenizer_config.json": json.dumps(config | {"eos_token": END}).encode(),
    }
    made = tokenizer_from_files(files, "here")
    assert (made.vocab_size, made.eos_id, made.special_tokens["<tool>"]) == (519, 517, 264)
    assert made.encode(f"<tool>the{END}", special=True) == [264, 257, 517]
    assert vocabulary_of(made).tokens[517:] == [END, START]
    again = tokenizer_from_files(hugging_face_files(made), "there")
    assert again.special_tokens == made.special_tokens
    del config["added_tokens_decoder"]["517"]
    with pytest.raises(UserError, match="are not 257 different names for the ids from 261 on"):
        tokenizer_from_files(files | {"tokenizer_config.json": json.dumps(config).encode()}, "here")


def test_a_saved_tokenizer_opens_as_the_same():
    for name in ("both", "only named", "json, named", "unigram, no unk"):
        made = opened(name)
        again = tokenizer_from_files(made.files(), "there")
        assert (again.fingerprint, again.special_tokens) == (made.fingerprint, made.special_tokens)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"added_tokens__json": {"<x>": 5}}, r"added_tokens.json: has '<x>' as 5, 384 is next"),
        ({"added_tokens__json": {"<x>": 400}}, r"added_tokens.json: has '<x>' as 400, 384 is next"),
        ({"added_tokens__json": {"</s>": 3}}, r"has '</s>' as 3, which is 2 in tokenizer.model"),
        ({"added_tokens__json": {"<x>": 384, "<y>": 384}}, r"added_tokens.json: has '<x>' and '<y>' as 384"),
        ({"added_tokens__json": {"<x>": -1}}, r"added_tokens.json: '<x>' is -1; names with ids are expected"),
        ({"added_tokens__json": {"<x>": True}}, r"added_tokens.json: '<x>' is True"),
        ({"added_tokens__json": []}, r"added_tokens.json: holds \[\] where a JSON object"),
        ({"tokenizer_config__json": {"added_tokens_decoder": []}}, r"added_tokens_decoder .* is \[\]; an object"),
        (
            {"tokenizer_config__json": {"added_tokens_decoder": {"x": {"content": "<x>"}}}},
            r"added_tokens_decoder of tokenizer_config.json: has the id 'x', which is not one of a token",
        ),
        (
            {"tokenizer_config__json": {"added_tokens_decoder": {"384": {"content": 3}}}},
            r"added_tokens_decoder of tokenizer_config.json: 384: .*'content': 3.* is not a token",
        ),
        ({"tokenizer_config__json": {"pad_token": 3}}, r"tokenizer_config.json: pad_token:? 3 is not "),
        ({"tokenizer_config__json": {"extra_special_tokens": 3}}, r"extra_special_tokens 3 is not a list of tokens"),
        (
            {
                "added_tokens__json": {"<x>": 384},
                "tokenizer_config__json": {"added_tokens_decoder": {"384": {"content": "<y>"}}},
            },
            r"added_tokens.json: has '<x>' as 384, unlike added_tokens_decoder of tokenizer_config.json",
        ),
    ],
)
def test_files_that_contradict_each_other_are_refused_by_name(files, message):
    with pytest.raises(UserError, match=message) as error:
        beside(**files)
    assert "bytes)" not in str(error.value)


def test_text_that_spells_a_piece_of_unigram_stays_text():
    for name in [name for name in CASES if name.startswith("unigram")]:
        made = opened(name)
        for text in ("<s>", "a </s> b", "<unk>", "<0x0A>", "x<s><0x41></s>"):
            ids = made.encode(text)
            assert not {1, 2} & set(ids)
            if "without" not in name and "<unk>" not in text:
                assert made.decode(ids) == text


def normalizing_model() -> bytes:
    """A Unigram model with sentencepiece's own settings: characters replaced, spaces joined."""
    made, texts = io.BytesIO(), CASES["unigram, nfkc"]["texts"]
    given = {"sentence_iterator": iter([*texts, "The small boat"] * 40), "model_writer": made}
    sentencepiece.SentencePieceTrainer.train(vocab_size=90, hard_vocab_limit=False, minloglevel=2, **given)
    return made.getvalue()


def test_unigram_models_of_sentencepiece_become_the_same_in_a_json_file():
    for model in (MODELS["unigram"], MODELS["no bytes"], normalizing_model()):
        plain = SentencePieceTokenizer(model)
        made = tokenizer_from_files(hugging_face_files(plain), "there")
        assert isinstance(made, HuggingFaceTokenizer)
        for text in [*CASES["unigram, nfkc"]["texts"], " two  spaces ", "\uff21\u2460 \u3000x", "a\n b "]:
            assert made.encode(text) == plain.encode(text), text
    text = "<s> <0x0A> </s>"
    plain = SentencePieceTokenizer(MODELS["unigram"])
    assert tokenizer_from_files(hugging_face_files(plain), "there").encode(text) == plain.encode(text)


def test_a_unigram_tokenizer_is_refused_by_name_where_the_format_has_none():
    for made in (opened("unigram, all special"), SentencePieceTokenizer(MODELS["unigram"])):
        with pytest.raises(UserError, match=r"Unigram.*GGUF and llama2.c know for no LLaMA"):
            vocabulary_of(made)


def test_pieces_that_a_user_defined_are_found_whole():
    plain = SentencePieceTokenizer(MODELS["defined"])
    made = tokenizer_from_files(hugging_face_files(plain), "there")
    for text in (f"{START}user", f"a{END}b", f"the<tool> {END}", "<s>", f"{END}<s>{END}"):
        assert made.encode(text) == plain.encode(text), text
        assert not {1, 2} & set(made.encode(text))
