"""A tokenizer with more tokens than its model has rows: used where nothing gives them, refused by name where something
does."""

import dataclasses
import json
import pickle

import pytest
import tokenizers
from etils import epath
from small_weights import FLOAT32, SMALL, SmallWeights, of_kind

from llama_jax import load
from llama_jax.checkpoints.formats.gguf import open_gguf, write_gguf
from llama_jax.checkpoints.formats.hugging_face import open_hugging_face, write_hugging_face
from llama_jax.checkpoints.formats.llama2c import write_llama2c
from llama_jax.checkpoints.opening import tokenizer_for
from llama_jax.core.errors import UserError
from llama_jax.data.instructions.chat import encode_chat
from llama_jax.data.instructions.records import Turn
from llama_jax.data.instructions.templates import Layout
from llama_jax.data.tokenizers import Tokenizer, load_tokenizer, tokenizer_from_files, train_tokenizer

BOS, EOS, PAD, START = "<s>", "</s>", "[PAD]", "<|im_start|>"
ROWS = 259
CONFIG = dataclasses.replace(SMALL, vocab_size=ROWS)
HELLO = [{"role": "user", "content": "hello"}]


def files_with(*added: str, special: bool = True, **config: object) -> dict[str, bytes]:
    """A tokenizer of bytes and one merge, BOS and EOS, for which the model has rows, and added tokens behind."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    table = {name: number for number, name in enumerate([*alphabet, "ab"])}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(table, [("a", "b")]))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    for name in (BOS, EOS, *added):
        is_special = special or name not in added
        made.add_tokens([tokenizers.AddedToken(name, special=is_special, normalized=False)])
    names = {"bos_token": BOS, "eos_token": EOS}
    return {"tokenizer.json": made.to_str().encode(), "tokenizer_config.json": json.dumps(names | config).encode()}


def fitted(files: dict[str, bytes], rows: int = ROWS) -> Tokenizer:
    return tokenizer_for(files, dataclasses.replace(CONFIG, vocab_size=rows), "my/model", given=None)


def test_a_token_that_nothing_gives_is_harmless() -> None:
    files = files_with(PAD, "<|unused|>", pad_token=PAD, chat_template="{{ messages[0].content }}")
    made = fitted(files | {"generation_config.json": json.dumps({"eos_token_id": [258, 259]}).encode()})
    assert (made.vocab_size, made.stop_ids) == (ROWS, (258,))
    assert made.encode(f"a{PAD}") == load_tokenizer("x.json", files["tokenizer.json"]).encode(f"a{PAD}")
    assert made.decode([*made.encode("a"), 259]) == "a"
    assert encode_chat(made, HELLO) == made.encode("hello")
    assert pickle.loads(pickle.dumps(made)).vocab_size == ROWS
    with pytest.raises(UserError, match=r"the model has 259 rows, none for token 259, '\[PAD\]'"):
        made.encode(f"a{PAD}", special=True)


def test_a_model_with_rows_to_spare_takes_all_tokens() -> None:
    made = fitted(files_with(PAD, chat_template=f"{PAD}"), rows=ROWS + 6)
    assert (made.vocab_size, made.encode(PAD, special=True)) == (ROWS + 1, [259])


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (files_with(START, chat_template="{{ '<|im_start|>' }}"), r"259, '<\|im_start\|>', which the chat template"),
        (files_with(PAD, chat_template="{{ pad_token }}", pad_token=PAD), r"259, '\[PAD\]', which the chat template"),
        (
            files_with(PAD, chat_template="{{ pad_token }}", pad_token={"content": PAD}),
            r"259, '\[PAD\]', which the chat template writes",
        ),
        (files_with("<tool>", special=False), r"token 259, '<tool>', which text can give"),
        (files_with(START, eos_token=START), r"token 259, '<\|im_start\|>', which ends texts"),
        (files_with(START, bos_token=START), r"token 259, '<\|im_start\|>', which opens texts"),
        (files_with(PAD, START) | {"chat_template.jinja": START.encode()}, r"token 260, '<\|im_start\|>', which the"),
    ],
)
def test_a_token_that_something_gives_is_refused_by_name(files, message) -> None:
    with pytest.raises(UserError, match=rf"my/model: tokenizer.json has {message}|my/model: .*{message}") as error:
        fitted(files)
    assert "--tokenizer" not in str(error.value) and "the model has 259 rows" in str(error.value)


def test_a_token_that_a_template_puts_together_is_refused_when_it_does() -> None:
    made = fitted(files_with("<|user|>", chat_template="{{ '<|' + messages[0].role + '|>' }}{{ messages[0].content }}"))
    with pytest.raises(UserError, match=r"the model has 259 rows, none for token 259, '<\|user\|>'"):
        encode_chat(made, HELLO)
    layout = Layout("chatml", fitted(files_with(START, "<|im_end|>")))
    with pytest.raises(UserError, match=r"none for token 259, '<\|im_start\|>'"):
        layout.prompt_ids([Turn("user", "hello")])


def test_a_file_that_is_given_is_named(tmp_path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(files_with("<tool>", special=False, eos_token=EOS)["tokenizer.json"])
    with pytest.raises(UserError, match=r"--tokenizer .*tokenizer.json: .*token 259, '<tool>', which text can give"):
        tokenizer_for({}, CONFIG, "my/model", given=str(path))


def test_every_format_takes_such_a_model(tmp_path) -> None:
    weights = SmallWeights(CONFIG, files=files_with(PAD, pad_token=PAD))
    (tmp_path / "hf").mkdir()
    write_hugging_face(tmp_path / "hf", weights)
    assert open_hugging_face(tmp_path / "hf").files["tokenizer.json"] == weights.files["tokenizer.json"]
    tokenizer = load(str(tmp_path / "hf"))[2]
    assert (tokenizer.vocab_size, tokenizer.encode("ab", bos=True)) == (ROWS, [257, 256])


def test_gguf_has_as_many_tokens_as_the_model_has_rows(tmp_path) -> None:
    gguf = pytest.importorskip("gguf")
    write_gguf(
        epath.Path(tmp_path / "model.gguf"), SmallWeights(CONFIG, files=files_with(PAD, "<|unused|>", pad_token=PAD))
    )
    fields = gguf.GGUFReader(tmp_path / "model.gguf").fields
    assert fields["tokenizer.ggml.tokens"].contents()[257:] == [BOS, EOS]
    assert set(tokenizer_from_files(open_gguf(tmp_path / "model.gguf").files, "gguf").special_tokens) == {BOS, EOS}
    used = files_with(START, chat_template=START)
    with pytest.raises(UserError, match=r"small: tokenizer.json has token 259, '<\|im_start\|>', which the chat"):
        write_gguf(epath.Path(tmp_path / "used.gguf"), SmallWeights(CONFIG, files=used))
    assert not (tmp_path / "used.gguf").exists()


def test_llama2c_leaves_out_what_the_model_has_no_row_for(tmp_path) -> None:
    plain = train_tokenizer(["some text to learn a few pieces from, and a few more"] * 9, 280)
    files = plain.files() | {"tokenizer_config.json": b'{"pad_token": "[PAD]"}'}
    assert tokenizer_from_files(files, "here").special_tokens["[PAD]"] == 280
    weights = dataclasses.replace(of_kind(FLOAT32, vocab_size=280, norm_epsilon=1e-5), files=files)
    write_llama2c(epath.Path(tmp_path / "model.bin"), weights)
    made = load_tokenizer(tmp_path / "tokenizer.bin")
    assert (made.vocab_size, made.encode("a few pieces")) == (280, plain.encode("a few pieces"))
