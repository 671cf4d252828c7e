import io
import pickle
import random

import pytest
import sentencepiece

from llama_jax.core.errors import UserError
from llama_jax.data.tokenizers import (
    Llama2cTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
    load_tokenizer,
    train_tokenizer,
)

BYTES_ONLY = b"\x06\0\0\0" + b"".join(
    b"\0\0\0\0" + bytes([len(piece), 0, 0, 0]) + piece
    for piece in [b"<unk>", b"<s>", b"</s>", *(b"<0x%02X>" % byte for byte in range(256))]
)
TEXTS = [
    "",
    " ",
    "cat",
    " two  spaces ",
    "a\n\n\tb\r\n",
    "1812",
    "é中🙂 caf\u00e9",
    "nul\0nul",
    "<s></s><unk>",
    "<0x0A>",
]


@pytest.mark.parametrize("text", TEXTS)
def test_sentencepiece_gives_the_text_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode(tokenizer.encode(text, bos=True, eos=True)) == text


@pytest.mark.parametrize("text", TEXTS)
def test_llama2c_gives_the_text_back(byte_tokenizer, text):
    assert byte_tokenizer.decode(byte_tokenizer.encode(text)) == text
    assert byte_tokenizer.decode(byte_tokenizer.encode(text, bos=True, eos=True)) == text


@pytest.mark.parametrize("text", ["<s>", "</s>", "<unk>", "a <s> b"])
def test_text_never_becomes_a_control_token(tokenizer, byte_tokenizer, text):
    for each in (tokenizer, byte_tokenizer):
        ids = each.encode(text)
        assert ids and min(ids) > 2


def test_bos_and_eos_are_added_only_where_asked_for(tokenizer):
    ids = tokenizer.encode("the cat")
    assert tokenizer.encode("the cat", bos=True) == [1, *ids]
    assert tokenizer.encode("the cat", eos=True) == [*ids, 2]
    assert 1 not in ids and 2 not in ids


def test_training_gives_llamas_layout(tokenizer):
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id) == (320, 1, 2)
    assert tokenizer.encode("\U0001f642")[-4:] == [byte + 3 for byte in "\U0001f642".encode()]


def test_numbers_are_split_into_digits(tokenizer):
    digits = [tokenizer.decode([token]) for token in tokenizer.encode("1812")]
    assert [digit for digit in digits if digit] == ["1", "8", "1", "2"]


def test_training_twice_gives_the_same_bytes(tale, tokenizer):
    assert train_tokenizer([tale], 320).to_bytes() == tokenizer.to_bytes()


def test_training_drops_no_part_of_a_long_line(tale):
    line = " ".join([tale.replace("\n", " ")] * 20) + " " + "zyzzyva " * 200
    assert len(line) > 4192
    token = train_tokenizer([line], 320).encode("zyzzyva")
    assert len(token) == 1  # "▁zyzzyva" is frequent, so it is a piece if the end of the line was seen


def test_training_drops_no_line_with_a_reserved_character(tale):
    trained = train_tokenizer(["zyzzyva \u2585" * 50 + " " + tale.replace("\n", " ")], 320)
    assert len(trained.encode("zyzzyva")) == 1


def test_a_vocabulary_that_does_not_fit_the_text_is_refused_with_one_that_does(tale):
    with pytest.raises(UserError, match=r"^vocab_size: 5000 is too large for this text; at most (\d+) fit$") as error:
        train_tokenizer([tale], 5000)
    largest = int(str(error.value).split()[-2])
    assert train_tokenizer([tale], largest).vocab_size == largest
    with pytest.raises(UserError, match=rf"at most {largest} fit"):
        train_tokenizer([tale], largest + 1)
    with pytest.raises(UserError, match=r"^vocab_size: 264 is too small for this text; its characters need at least"):
        train_tokenizer([tale], 264)


def test_a_vocabulary_without_room_for_bytes_is_refused():
    with pytest.raises(UserError, match="vocab_size: 200 is too small; control tokens and bytes alone take 259"):
        train_tokenizer(["text"], 200)


@pytest.mark.parametrize("texts", [[], [""], ["\n\n"]])
def test_training_on_nothing_is_refused(texts):
    with pytest.raises(UserError, match="no text to train a tokenizer on"):
        train_tokenizer(texts, 300)


def test_tokenizers_survive_pickling(tokenizer, byte_tokenizer, tale):
    for each in (tokenizer, byte_tokenizer):
        copy = pickle.loads(pickle.dumps(each))
        assert copy.encode(tale) == each.encode(tale)
        assert copy.fingerprint == each.fingerprint
        assert isinstance(copy, Tokenizer)


def test_half_a_surrogate_pair_is_a_unicode_error(tokenizer, byte_tokenizer):
    for each in (tokenizer, byte_tokenizer):
        with pytest.raises(UnicodeEncodeError):
            each.encode("a\ud800b")


def test_bytes_that_are_no_text_decode_to_replacement_characters(tokenizer, byte_tokenizer):
    for each in (tokenizer, byte_tokenizer):
        assert each.decode([0xFF + 3]) == "\ufffd"


def test_llama2c_merges_the_best_score_first(write_llama2c):
    pieces = [(b" ", -10.0), (b"a", -11.0), (b"b", -12.0), (b"ab", -1.0), (b" a", -2.0), (b"abb", -3.0), (b"aa", -0.5)]
    merged = Llama2cTokenizer(write_llama2c(pieces))
    space, a, b, ab, space_a, abb, aa = range(259, 266)
    assert merged.encode("ab") == [space, ab]
    assert merged.encode("a") == [space_a]
    assert merged.encode("abb") == [space, abb]
    assert merged.encode("aaa") == [space, aa, a]  # of equal pairs the leftmost
    assert merged.encode("bé") == [space, b, 0xC3 + 3, 0xA9 + 3]
    assert merged.encode("") == []


def test_llama2c_finds_the_merges_of_a_plain_scan(write_llama2c):
    generator = random.Random(0)
    words = {"".join(generator.choices("ab ", k=generator.randint(2, 5))).encode() for _ in range(60)}
    pieces = [(b"a", -90.0), (b"b", -91.0), (b" ", -92.0)]
    pieces += [(word, -float(generator.randint(1, 20))) for word in sorted(words)]
    merged = Llama2cTokenizer(write_llama2c(pieces))
    ids = {piece: number for number, (piece, _) in enumerate(pieces, 259)}
    scores = dict(pieces)
    for _ in range(100):
        text = "".join(generator.choices("ab ", k=40))
        symbols = [character.encode() for character in " " + text]
        while True:
            pairs = [(scores.get(symbols[i] + symbols[i + 1], -1e10), -i) for i in range(len(symbols) - 1)]
            score, at = max(pairs, default=(-1e10, 0))
            if score == -1e10:
                break
            symbols[-at : 2 - at] = [symbols[-at] + symbols[1 - at]]
        assert merged.encode(text) == [ids[symbol] for symbol in symbols]


def test_llama2c_never_merges_text_into_a_control_or_byte_token(write_llama2c):
    pieces = [
        (piece, -1.0) for piece in (b" ", b"<", b"s", b">", b"<s", b"<0x0", b"A>", b"0", b"x", b"A", b"<0", b"<0x")
    ]
    merged = Llama2cTokenizer(write_llama2c(pieces))
    assert merged.encode("<s>") == [259, 263, 262]
    assert merged.decode(merged.encode("<0x0A>")) == "<0x0A>"


def test_llama2c_takes_off_one_space_after_bos(write_llama2c):
    words = Llama2cTokenizer(write_llama2c([(b" ", -1.0), (b" a", -1.0), (b"a", -1.0)]))
    assert words.decode([1, 260]) == "a"
    assert words.decode([1, 259, 260]) == " a"
    assert words.decode([260, 260]) == "a a"
    assert words.decode([1, 260, 2, 1, 260]) == "aa"
    assert words.decode([0xC3 + 3, 0xA9 + 3]) == "é"


def test_files_load_as_what_they_are(tmp_path, tokenizer, byte_tokenizer):
    for each in (tokenizer, byte_tokenizer):
        (tmp_path / each.file_name).write_bytes(each.to_bytes())
        loaded = load_tokenizer(tmp_path / each.file_name)
        assert type(loaded) is type(each)
        assert loaded.fingerprint == each.fingerprint


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.model", None, "no such file"),
        ("empty.model", b"", "it is empty"),
        ("text.model", b"some words\n", "not a sentencepiece model"),
        ("three.model", b"IQ== 0\nIg== 1\n", "is a tiktoken file"),
        ("tokenizer.json", b"{}", "JSON tokenizers are not read"),
        ("short.bin", b"\x05\0\0\0", "not a llama2.c tokenizer"),
        ("bytes.bin", BYTES_ONLY, "it has no piece for a space"),
        ("cut.bin", b"\x05\0\0\0" + b"\0\0\0\0\x05\0\0\0<un", "it ends within token 0"),
    ],
)
def test_broken_files_are_refused_by_name(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name}: .*{message}") as error:
        load_tokenizer(tmp_path / name)
    assert "\n" not in str(error.value)


def test_a_directory_is_refused_with_the_file_to_name(tmp_path):
    with pytest.raises(UserError, match=r"is a directory; name the file in it"):
        load_tokenizer(tmp_path)


def test_a_model_without_bos_is_refused(tokenizer):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a b c d e f"] * 5), model_writer=model, vocab_size=10, bos_id=-1, minloglevel=2
    )
    with pytest.raises(ValueError, match="no BOS or no EOS"):
        SentencePieceTokenizer(model.getvalue())
