import io
import pickle
import random

import pytest
import sentencepiece
import tiktoken
import tokenizers
from small_tokenizers import BESIDE, HARD_TEXTS, byte_level_file, tiktoken_file

from llama_jax.core.errors import UserError
from llama_jax.data.tokenizers import (
    HuggingFaceTokenizer,
    Llama2cTokenizer,
    SentencePieceTokenizer,
    TiktokenTokenizer,
    Tokenizer,
    train_tokenizer,
)
from llama_jax.data.tokenizers.tiktoken_model import LLAMA3_PATTERN


@pytest.mark.parametrize("text", HARD_TEXTS)
def test_the_text_comes_back(every_tokenizer, text):
    for each in every_tokenizer:
        assert each.decode(each.encode(text)) == text
        assert each.decode(each.encode(text, bos=True, eos=True)) == text


def test_ids_are_those_of_the_libraries(tokenizer, tiktoken_tokenizer, json_tokenizer):
    processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.to_bytes())
    encoding = tiktoken.Encoding(
        "outside", pat_str=LLAMA3_PATTERN, mergeable_ranks=tiktoken_tokenizer.ranks, special_tokens={}
    )
    library = tokenizers.Tokenizer.from_buffer(byte_level_file())
    library.no_truncation()
    library.no_padding()
    for text in [*HARD_TEXTS, " ".join(HARD_TEXTS)]:
        assert tokenizer.encode(text) == processor.encode(text)
        assert tiktoken_tokenizer.encode(text) == encoding.encode_ordinary(text)
        assert json_tokenizer.encode(text) == library.encode(text, add_special_tokens=False).ids
        assert json_tokenizer.decode(json_tokenizer.encode(text)) == library.decode(json_tokenizer.encode(text))


def test_ordinary_text_never_becomes_a_control_token(every_tokenizer):
    generator = random.Random(0)
    for each in every_tokenizer:
        names = [*each.special_tokens, "<", "|", ">", " ", "a"]
        control = set(each.special_tokens.values())
        for _ in range(100):
            text = "".join(generator.choices(names, k=5))
            assert control.isdisjoint(each.encode(text))
            assert each.decode(each.encode(text)) == text


def test_control_tokens_are_read_where_asked_for(every_tokenizer):
    for each in every_tokenizer:
        names = {token: name for name, token in each.special_tokens.items()}
        bos, eos = names[each.bos_id], names[each.eos_id]
        middle = each.encode("the cat")
        assert each.encode(f"{bos}the cat{eos}{eos}", special=True) == [each.bos_id, *middle, each.eos_id, each.eos_id]
        assert each.decode(each.encode(f"{bos}the cat{eos}", special=True)) == "the cat"


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


def test_tokenizers_survive_pickling(every_tokenizer, tale):
    for each in every_tokenizer:
        copy = pickle.loads(pickle.dumps(each))
        assert copy.encode(tale) == each.encode(tale)
        assert (copy.fingerprint, copy.files(), copy.stop_ids) == (each.fingerprint, each.files(), each.stop_ids)
        assert isinstance(copy, Tokenizer)


def test_half_a_surrogate_pair_is_a_unicode_error(every_tokenizer):
    for each in every_tokenizer:
        with pytest.raises(UnicodeEncodeError):
            each.encode("a\ud800b")


def test_bytes_that_are_no_text_decode_to_replacement_characters(tokenizer, byte_tokenizer, tiktoken_tokenizer):
    for each in (tokenizer, byte_tokenizer):
        assert each.decode([0xFF + 3]) == "\ufffd"
    assert tiktoken_tokenizer.decode([0x61, 0xFF, 0xE2, 0x82]) == "a\ufffd\ufffd"


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


def test_a_model_without_bos_is_refused(tokenizer):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a b c d e f"] * 5), model_writer=model, vocab_size=9, bos_id=-1, minloglevel=2
    )
    with pytest.raises(ValueError, match="no BOS or no EOS"):
        SentencePieceTokenizer(model.getvalue())


def test_ids_beyond_the_vocabulary_give_no_text(every_tokenizer):
    for each in every_tokenizer:
        ids = each.encode("the cat")
        assert each.decode([ids[0], each.vocab_size, *ids[1:], 99_999]) == "the cat"


def test_llama3_has_metas_control_tokens(tiktoken_tokenizer):
    special = tiktoken_tokenizer.special_tokens
    assert tiktoken_tokenizer.vocab_size == 261 + 256 and len(special) == 256
    offsets = {
        "<|begin_of_text|>": 0,
        "<|end_of_text|>": 1,
        "<|reserved_special_token_0|>": 2,
        "<|finetune_right_pad_id|>": 4,
        "<|start_header_id|>": 6,
        "<|end_header_id|>": 7,
        "<|eom_id|>": 8,
        "<|eot_id|>": 9,
        "<|python_tag|>": 10,
    }
    assert {name: special[name] - 261 for name in offsets} == offsets
    assert sorted(special.values()) == list(range(261, 517))
    assert (tiktoken_tokenizer.bos_id, tiktoken_tokenizer.eos_id) == (261, 262)
    assert tiktoken_tokenizer.stop_ids == (262, 269, 270)
    assert tiktoken_tokenizer.adds_bos


def test_long_runs_are_cut_as_meta_cuts_them(tiktoken_tokenizer):
    encode = tiktoken_tokenizer.encode
    assert encode("the" * 10_000) == [257] * 8_333 + [*b"the"] + [257] * 1_666  # within a "the"
    assert encode(" " * 25_001) == encode(" " * 25_000) + encode(" ")
    assert encode("x" * 24_999 + " the" * 3) == encode("x" * 24_999) + [258] * 3
    text = " the" * 100_001  # 400,004 characters: cut after 400,000
    assert encode(text) == [258] * 100_001


def test_settings_beside_the_file_are_taken(json_tokenizer):
    assert (json_tokenizer.bos_id, json_tokenizer.eos_id, json_tokenizer.stop_ids) == (0, 1, (1, 5))
    assert json_tokenizer.adds_bos  # as the file's own template has it
    assert json_tokenizer.special_tokens == {"<|bos|>": 0, "<|eos|>": 1}
    assert json_tokenizer.encode("<think>") == [2]  # added, but not a control token
    told = BESIDE | {"tokenizer_config.json": b'{"eos_token": "<|eos|>", "add_bos_token": false, "chat_template": "x"}'}
    without = HuggingFaceTokenizer(byte_level_file(), told)
    assert not without.adds_bos and without.chat_template == "x"
    assert HuggingFaceTokenizer(byte_level_file(), told | {"chat_template.jinja": b"y"}).chat_template == "y"


def test_settings_change_tokenizers_of_every_kind(tokenizer):
    beside = {
        "special_tokens_map.json": b'{"bos_token": "</s>", "eos_token": {"content": "<s>"}}',
        "generation_config.json": b'{"eos_token_id": 7}',
        "tokenizer_config.json": b'{"add_bos_token": false, "chat_template": [{"name": "default", "template": "z"}]}',
    }
    changed = SentencePieceTokenizer(tokenizer.to_bytes(), beside)
    assert (changed.bos_id, changed.eos_id, changed.stop_ids) == (2, 1, (1, 7))
    assert (changed.adds_bos, changed.chat_template) == (False, "z")
    assert TiktokenTokenizer(tiktoken_file(), {"tokenizer_config.json": b'{"eos_token": "<|eot_id|>"}'}).eos_id == 270


def test_bytes_beside_wrong_bytes_keep_their_text():
    fallback = tokenizers.Tokenizer(
        tokenizers.models.BPE({f"<0x{byte:02X}>": byte for byte in range(256)} | {"</s>": 256}, [], byte_fallback=True)
    )
    fallback.decoder = tokenizers.decoders.Sequence([tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse()])
    fallback.add_special_tokens(["</s>"])
    ours = HuggingFaceTokenizer(fallback.to_str().encode())
    good = list("aé🙂".encode())
    assert ours.decode(good) == "aé🙂"
    assert ours.decode([*good, 0xFF, 256, *good]) == "aé🙂\ufffdaé🙂"
    assert (ours.bos_id, ours.eos_id) == (256, 256)  # no BOS: documents open with EOS
