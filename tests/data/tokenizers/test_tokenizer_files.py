import base64
import json
import struct
import time
from dataclasses import asdict, replace

import pytest
import sentencepiece
import tokenizers
from small_tokenizers import BESIDE, HARD_TEXTS, TALE, byte_level_file, llama2c_file, tiktoken_file, with_control_tokens

from llama_jax.core.errors import UserError
from llama_jax.data.tokenizers import (
    HuggingFaceTokenizer,
    SentencePieceTokenizer,
    Vocabulary,
    files_of_vocabulary,
    has_tokenizer,
    hugging_face_files,
    llama2c_bytes,
    load_tokenizer,
    tokenizer_from_files,
    vocabulary_of,
)
from llama_jax.data.tokenizers.sentencepiece_model import Piece, PieceModel, piece_model_bytes

BYTES_ONLY = llama2c_file([])
NO_BYTE_7 = b"".join(line for line in tiktoken_file().splitlines(True) if b"Bw==" not in line)


def json_file(**changes) -> bytes:
    return json.dumps(json.loads(byte_level_file()) | changes).encode()


def bpe(vocabulary: dict[str, int], merges: list[list[str]]) -> dict:
    return {"type": "BPE", "vocab": vocabulary, "merges": merges}


def split(pattern: str) -> dict:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def plain(vocabulary: Vocabulary) -> dict:
    """Fields to compare, whichever kind of sequence they are."""
    fields = asdict(vocabulary)
    return {name: list(value) if isinstance(value, list | tuple) else value for name, value in fields.items()}


def same_ids(one, other) -> bool:
    return all(one.encode(text) == other.encode(text) for text in [*HARD_TEXTS, TALE])


def test_files_load_as_what_they_are(tmp_path, every_tokenizer):
    for number, each in enumerate(every_tokenizer):
        directory = tmp_path / str(number)
        directory.mkdir()
        for name, content in each.files().items():
            (directory / name).write_bytes(content)
        for path in (directory, directory / each.file_name):
            loaded = load_tokenizer(path)
            assert type(loaded) is type(each)
            assert (loaded.files(), loaded.stop_ids) == (each.files(), each.stop_ids)


def test_a_file_of_another_name_is_loaded_by_itself(tmp_path, tokenizer):
    (tmp_path / "mine.model").write_bytes(tokenizer.to_bytes())
    (tmp_path / "tokenizer_config.json").write_bytes(b"someone else's")
    assert load_tokenizer(tmp_path / "mine.model").files() == tokenizer.files()


def test_a_json_file_is_preferred_and_the_model_travels_with_it(tokenizer, json_tokenizer):
    files = {**json_tokenizer.files(), "tokenizer.model": tokenizer.to_bytes()}
    chosen = tokenizer_from_files(files, "here")
    assert isinstance(chosen, HuggingFaceTokenizer)
    assert chosen.files() == files
    assert has_tokenizer(files) and not has_tokenizer(BESIDE)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.model", None, "no such file"),
        ("empty.model", b"", "it is empty"),
        ("text.model", b"some words\n", "not a sentencepiece model"),
        ("zeros.model", bytes(1000), "not a sentencepiece model"),
        ("deep.model", b"\x0a\xff\xff\xff\xff\x0f" * 100, "not a sentencepiece model"),
        ("short.bin", b"\x05\0\0\0", "not a llama2.c tokenizer"),
        ("bytes.bin", BYTES_ONLY, "it has no piece for a space"),
        ("cut.bin", b"\x05\0\0\0" + b"\0\0\0\0\x05\0\0\0<un", "it ends within token 0"),
        ("negative.bin", struct.pack("<ifi", 5, 0.0, -1), "token 0, which claims -1 bytes"),
        ("huge.bin", struct.pack("<ifi", 5, 0.0, 2**31 - 1), "token 0, which claims 2147483647 bytes"),
        ("gap.model", b"IQ== 0\nIg== 2\n", r"line 2 has rank 2; ranks count up from 0, so 1 is due"),
        ("twice.model", b"IQ== 0\nIg== 0\n", r"line 2 has rank 0"),
        ("same.model", b"IQ== 0\nIQ== 1\n", r"line 2 repeats the token of line 1"),
        ("base64.model", b"IQ== 0\nIQ 1\n", r"line 2 is not a token in base64 and its rank"),
        ("words.model", b"IQ== 0\nsome words\n", r"line 2 is not a token in base64 and its rank"),
        ("long.model", base64.b64encode(bytes(2000)) + b" 0\n", r"line 1 has a token of 2000 bytes"),
        ("large.model", b"IQ== 0\nIg== 99999999999999\n", r"line 2 is not a token"),
        ("byte.model", b"IQ== 0\n", r"no token for the byte 0x00"),
        ("no.json", b"not json", r"is not JSON: Expecting value in line 1 column 1"),
        ("none.json", b"{}", r"Model missing"),
        ("list.json", b"[]", r"holds \[\] where a JSON object is expected"),
        ("nested.json", b'{"a":' * 200_000, r"is JSON nested too deeply"),
        ("twice.json", b'{"model": 1, "model": 2}', r"has the key 'model' twice"),
        ("type.json", json_file(model={"type": "Pickle", "vocab": {}}), r"the tokenizers library refuses it"),
        (
            "merge.json",
            json_file(model={"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]}),
            "out of vocabulary",
        ),
        (
            "regex.json",
            json_file(pre_tokenizer={"type": "Split", "pattern": {"Regex": "(a{99999}){99999}("}}),
            "refuses",
        ),
        ("eos.json", json_file(added_tokens=[]), r"no known EOS token; name it as eos_token in tokenizer_config.json"),
        ("far.json", json_file(model=bpe({"a": 0, "b": 2**31}, [])), "2147483648"),
    ],
)
def test_broken_files_are_refused_by_name(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    started = time.process_time()
    with pytest.raises(UserError, match=f"{name}: .*{message}") as error:
        load_tokenizer(tmp_path / name)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500
    assert time.process_time() - started < 2


@pytest.mark.parametrize(
    ("beside", "message"),
    [
        ({"tokenizer_config.json": b"\xff"}, r"tokenizer_config.json: is not UTF-8"),
        ({"tokenizer_config.json": b'{"bos_token": 1}'}, r"tokenizer_config.json: bos_token 1 is not the name"),
        ({"tokenizer_config.json": b'{"bos_token": "<x>"}'}, r"bos_token '<x>' is not among its control tokens"),
        ({"tokenizer_config.json": b'{"add_bos_token": "no"}'}, r"add_bos_token 'no' is not true, false or null"),
        ({"tokenizer_config.json": b'{"chat_template": 3}'}, r"chat_template 3 is not a template"),
        ({"tokenizer_config.json": b" " * 2**27}, r"tokenizer_config.json has 134217728 bytes, more than"),
        ({"special_tokens_map.json": b'{"eos_token": []}'}, r"special_tokens_map.json: eos_token \[\]"),
        ({"generation_config.json": b'{"eos_token_id": -1}'}, r"eos_token_id -1 is not an id or a list of ids"),
        ({"generation_config.json": b'{"eos_token_id": [1, true]}'}, r"eos_token_id \[1, True\]"),
        ({"generation_config.json": b'{"eos_token_id": 320}'}, r"eos_token_id 320 is not below 320 tokens"),
        ({"chat_template.jinja": b"\xff"}, r"chat_template.jinja: not UTF-8"),
    ],
)
def test_broken_settings_are_refused_by_field(tokenizer, beside, message):
    with pytest.raises(UserError, match=f"tokenizer here: .*{message}"):
        tokenizer_from_files({"tokenizer.model": tokenizer.to_bytes(), **beside}, "here")


def test_a_directory_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"holds none of tokenizer.json, tokenizer.model, tokenizer.bin"):
        load_tokenizer(tmp_path)


def test_a_control_token_that_text_would_give_is_refused():
    letter = {"id": 3, "content": "!", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    content = json.loads(byte_level_file())
    assert content["model"]["vocab"]["!"] == 3
    content["added_tokens"].append(letter | {"special": True})
    with pytest.raises(UserError, match="control token '!' is also what the same ordinary text encodes to"):
        tokenizer_from_files({"tokenizer.json": json.dumps(content).encode()} | BESIDE, "here")


def test_a_pattern_that_never_ends_is_given_up():
    made = HuggingFaceTokenizer(json_file(pre_tokenizer=split("(a+)+$")), BESIDE)
    started = time.process_time()
    with pytest.raises(UserError, match=r"refuses 61 characters: Onig.*retry-limit"):
        made.encode("a" * 60 + "b")
    assert time.process_time() - started < 5


def test_vocabularies_come_back_from_their_files(tokenizer, json_tokenizer):
    for each in (tokenizer, json_tokenizer):
        vocabulary = replace(vocabulary_of(each), chat_templates={"default": "{{ 1 }}"}, stop_ids=(each.eos_id, 9))
        made = tokenizer_from_files(files_of_vocabulary(vocabulary), "here")
        assert plain(vocabulary_of(made)) == plain(vocabulary)
        assert type(made) is type(each)
        assert same_ids(made, each)
        assert (made.special_tokens, made.adds_bos) == (each.special_tokens, each.adds_bos)


def test_a_vocabulary_says_what_each_token_is(tokenizer, byte_tokenizer, json_tokenizer):
    made = vocabulary_of(tokenizer)
    assert (made.model, made.bos_id, made.eos_id, made.adds_bos, made.adds_space_prefix) == ("llama", 1, 2, True, True)
    assert list(made.types) == [2, 3, 3] + [6] * 256 + [1] * 61
    assert made.tokens[1] == "<s>" and made.tokens[3 + 10] == "<0x0A>"
    assert list(vocabulary_of(byte_tokenizer).tokens[257:]) == ["<0xFE>", "<0xFF>", "\u2581"]
    made = vocabulary_of(json_tokenizer)
    assert (made.model, made.pre, list(made.types[:5])) == ("gpt2", "gpt-2", [3, 3, 4, 1, 1])
    assert made.merges[0] in ("Ġ t", "h e")


@pytest.mark.parametrize(
    ("pre", "name", "ids"),
    [
        ("gpt-2", "gpt-2", [3]),
        ("exaone4", "gpt-2", [3]),
        ("default", "default", [2, 1, 1]),
        ("llama-bpe", "llama-bpe", [2, 1, 1]),
        ("llama3", "llama-bpe", [2, 1, 1]),
        ("smaug-bpe", "smaug-bpe", [2, 1, 1]),
        ("gpt-4o", "gpt-4o", [2, 1, 1]),
        ("tekken", "tekken", [1] * 4),
        ("smollm", "smollm", [1] * 4),
        ("qwen2", "qwen2", [1] * 4),
    ],
)
def test_words_are_split_by_the_named_pattern(pre, name, ids):
    tokens, merges = ["<end>", "7", "77", "7777"], ["7 7", "77 77"]
    vocabulary = Vocabulary("gpt2", tokens, [3, 1, 1, 1], None, 0, merges=merges, pre=pre, adds_bos=False)
    made = tokenizer_from_files(files_of_vocabulary(vocabulary), "here")
    assert made.encode("7777") == ids
    assert vocabulary_of(made).pre == name


def test_control_tokens_among_ordinary_ones_keep_their_ids():
    vocabulary = Vocabulary(
        model="gpt2",
        tokens=["<a>", "x", "<b>", "y", "xy", "<c>"],
        types=[3, 1, 3, 1, 1, 3],
        bos_id=0,
        eos_id=5,
        merges=["x y"],
        pre="llama-bpe",
    )
    made = tokenizer_from_files(files_of_vocabulary(vocabulary), "here")
    assert made.special_tokens == {"<a>": 0, "<b>": 2, "<c>": 5}
    assert made.encode("<a>xy<b>y<c>", special=True) == [0, 4, 2, 3, 5]
    assert plain(vocabulary_of(made))["tokens"] == list(vocabulary.tokens)


def test_a_control_token_that_is_a_word_is_not_found_in_text():
    tokens, types = ["<end>", "z", "e", "d", "zed"], [3, 1, 1, 1, 3]
    vocabulary = Vocabulary("gpt2", tokens, types, None, 0, pre="llama-bpe", adds_bos=False)
    made = tokenizer_from_files(files_of_vocabulary(vocabulary), "here")
    assert made.encode("zed") == [1, 2, 3]
    assert made.encode("zed", special=True) == [4]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pre": "klingon"}, r"splits words by 'klingon', which is not supported; .*llama-bpe"),
        ({"types": [1]}, r"6 tokens, 1 types and 6 scores do not agree"),
        ({"eos_id": 6}, r"eos_id 6 is not below 6 tokens"),
        ({"eos_id": None}, r"names no EOS token"),
        ({"tokens": ["a"] * 6}, r"token 'a' occurs 6 times"),
        ({"merges": ["x y z"]}, r"merge 'x y z' is not two tokens"),
        ({"model": "llama"}, r"has no scores"),
        ({"model": "llama", "scores": [0.0] * 6}, r"has no token of type 2 \(unknown\)"),
    ],
)
def test_vocabularies_that_contradict_themselves_are_refused(changes, message):
    good = Vocabulary("gpt2", ["<a>", "x", "<b>", "y", "xy", "<c>"], [3, 1, 3, 1, 1, 3], 0, 5, merges=["x y"])
    with pytest.raises(UserError, match=f"tokenizer: {message}"):
        files_of_vocabulary(replace(good, **changes))


def test_transformers_files_give_the_same_ids(every_tokenizer):
    for each in every_tokenizer:
        files = hugging_face_files(each)
        config = json.loads(files["tokenizer_config.json"])
        assert config["tokenizer_class"] == "PreTrainedTokenizerFast" and "bos_token" in config
        made = tokenizer_from_files(files, "here")
        assert isinstance(made, HuggingFaceTokenizer)
        assert same_ids(made, each)
        assert (made.vocab_size, made.bos_id, made.eos_id) == (each.vocab_size, each.bos_id, each.eos_id)
        assert (made.stop_ids, made.adds_bos) == (each.stop_ids, each.adds_bos)


def test_code_named_in_a_configuration_is_not_passed_on(json_tokenizer):
    beside = {
        "tokenizer_config.json": b'{"auto_map": {"AutoTokenizer": "x.Y"}, "eos_token": "<|eos|>", "pad_token": "p"}'
    }
    files = hugging_face_files(HuggingFaceTokenizer(byte_level_file(), beside))
    assert "auto_map" not in json.loads(files["tokenizer_config.json"])
    assert json.loads(files["tokenizer_config.json"])["pad_token"] == "p"


def test_llama3_files_have_every_merge(tiktoken_tokenizer):
    content = json.loads(hugging_face_files(tiktoken_tokenizer)["tokenizer.json"])
    assert content["model"]["merges"] == [["t", "h"], ["th", "e"], ["Ġ", "the"], ["Ġ", "Ġ"], ["1", "2"]]
    assert content["model"]["ignore_merges"] is True
    assert content["added_tokens"][0]["id"] == 261


def test_llama2c_files_are_those_of_its_own_export(tokenizer, byte_tokenizer):
    assert llama2c_bytes(byte_tokenizer) == byte_tokenizer.to_bytes()
    processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.to_bytes())
    pieces = [(processor.id_to_piece(token), processor.get_score(token)) for token in range(320)]
    pieces[1], pieces[2] = ("\n<s>\n", 0.0), ("\n</s>\n", 0.0)
    encoded = [(piece.replace("\u2581", " ").encode(), score) for piece, score in pieces]
    expected = struct.pack("<i", max(len(piece) for piece, _ in encoded))
    expected += b"".join(struct.pack("<fi", score, len(piece)) + piece for piece, score in encoded)
    assert llama2c_bytes(tokenizer) == expected
    assert same_ids(tokenizer_from_files({"tokenizer.bin": llama2c_bytes(tokenizer)}, "here"), tokenizer)


def test_llama2c_refuses_what_it_cannot_say(tokenizer, json_tokenizer):
    with pytest.raises(UserError, match=r"token '\[PAD\]' is special, which llama2.c cannot express"):
        llama2c_bytes(with_control_tokens(tokenizer, ["[PAD]"]))
    with pytest.raises(UserError, match=r"llama2.c supports only the tokenizers of LLaMA 1 and 2"):
        llama2c_bytes(json_tokenizer)


def test_models_that_no_llama_has_are_refused_in_other_formats():
    pieces = (Piece("<unk>", 0.0, 2), Piece("<s>", 0.0, 3), Piece("</s>", 0.0, 3), Piece("a", 0.0, 1))
    model = piece_model_bytes(PieceModel(pieces), unk="<unk>", bos="<s>", eos="</s>")
    unigram = SentencePieceTokenizer(model.replace(b"\x18\x02\x20", b"\x18\x01\x20", 1))
    with pytest.raises(UserError, match="is a Unigram model"):
        vocabulary_of(unigram)
    custom = {"type": "Whitespace"}
    with pytest.raises(UserError, match="splits text in a way that has none of the names"):
        vocabulary_of(HuggingFaceTokenizer(json_file(pre_tokenizer=custom), BESIDE))


def test_user_defined_pieces_are_vocabulary_not_control_tokens():
    kinds = [("<unk>", 2), ("<s>", 3), ("</s>", 3), ("<tool>", 4), ("<secret>", 3), ("\u2581", 1), ("a", 1)]
    pieces = tuple(Piece(text, 0.0, kind) for text, kind in kinds)
    made = SentencePieceTokenizer(piece_model_bytes(PieceModel(pieces), unk="<unk>", bos="<s>", eos="</s>"))
    assert made.encode("<tool>a") == [5, 3, 6]
    assert made.special_tokens == {"<unk>": 0, "<s>": 1, "</s>": 2, "<secret>": 4}  # templates may write any of these
    assert 4 not in made.encode("<secret>") and made.encode("<secret>", special=True) == [4]


def test_llama2_json_becomes_a_sentencepiece_model_again(tokenizer):
    files = hugging_face_files(tokenizer)
    del files["tokenizer.model"]
    by_merges = tokenizer_from_files(files, "here")
    made = tokenizer_from_files(files_of_vocabulary(vocabulary_of(by_merges)), "here")
    assert isinstance(made, SentencePieceTokenizer)
    assert same_ids(made, tokenizer)


def test_the_file_written_loads_in_the_library_alone(tokenizer):
    library = tokenizers.Tokenizer.from_buffer(hugging_face_files(tokenizer)["tokenizer.json"])
    assert library.encode("the cat").ids == tokenizer.encode("the cat", bos=True)


def test_a_directory_in_place_of_a_file_is_refused(tmp_path):
    (tmp_path / "tokenizer.json").mkdir()
    with pytest.raises(UserError, match=r"tokenizer.json: is not a regular file"):
        load_tokenizer(tmp_path)
