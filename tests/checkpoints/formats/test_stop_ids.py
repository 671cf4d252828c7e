"""Where an answer ends is the same after every export, and after fine-tuning."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import gguf
import pytest
from etils import epath
from small_chats import tokenizer_json
from small_settings import THINKING, TURNS, files
from small_tokenizers import tiktoken_file
from small_weights import SMALL, SmallWeights

from llama_jax.checkpoints.formats.gguf import write_gguf
from llama_jax.checkpoints.formats.hugging_face import open_hugging_face, write_hugging_face
from llama_jax.checkpoints.formats.llama2c import write_llama2c
from llama_jax.checkpoints.formats.meta import write_meta
from llama_jax.checkpoints.formats.orbax import write_orbax
from llama_jax.checkpoints.formats.weights import Weights
from llama_jax.checkpoints.opening import tokenizer_for
from llama_jax.checkpoints.weight_reading import open_weights
from llama_jax.core.errors import UserError
from llama_jax.data.instructions.templates import Layout
from llama_jax.data.tokenizers import HuggingFaceTokenizer, Tokenizer, tokenizer_from_files, train_tokenizer
from llama_jax.runs.starting import model_files

NAMES = ("<|bos|>", "<|eos|>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
BOS, EOS, START, END, HEADER, HEADER_END, TURN_END = range(len(NAMES))

WRITERS: Mapping[str, Callable[[epath.Path, Weights], object]] = {
    "hf": lambda target, weights: write_hugging_face(target, weights),
    "meta": lambda target, weights: write_meta(target, weights, shards=1),
    "gguf": lambda target, weights: write_gguf(target / "model.gguf", weights),
    "orbax": lambda target, weights: write_orbax(target, weights, dtype=None),
}


def with_files(beside: Mapping[str, bytes], **model: bytes) -> SmallWeights:
    made = {name.replace("_", ".", 1): content for name, content in model.items()} | dict(beside)
    size = tokenizer_from_files(made, "made").vocab_size
    return SmallWeights(dataclasses.replace(SMALL, vocab_size=size + 3), files=made)


def ending_with(stop_ids: object, **settings: object) -> SmallWeights:
    beside = {name: content.encode() for name, content in files(settings).items()}
    beside["generation_config.json"] = json.dumps({"eos_token_id": stop_ids, "temperature": 0.6}).encode()
    return with_files(beside, tokenizer_json=tokenizer_json())


def tokenizer_after(kind: str, folder: Path, weights: Weights) -> Tokenizer:
    """The tokenizer of the model once it has been written in a format and read again."""
    target = epath.Path(folder) / kind
    target.mkdir()
    WRITERS[kind](target, weights)
    opened = open_weights(str(target / "model.gguf" if kind == "gguf" else target), step=None, say=print)
    return tokenizer_from_files(opened.files, kind)


ENDS = {
    "a number": (END, [EOS, END]),
    "a list": ([TURN_END, END], [EOS, END, TURN_END]),
    "eos alone": (EOS, [EOS]),
    "more than GGUF has keys for": ([START, END, HEADER, HEADER_END, TURN_END], [1, 2, 3, 4, 5, 6]),
}


@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize("kind", ["hf", "gguf", "meta"])
def test_every_export_ends_an_answer_where_its_source_does(tmp_path, kind, ends) -> None:
    if kind == "meta":
        pytest.importorskip("torch")
    said, stop_ids = ENDS[ends]
    made = tokenizer_after(kind, tmp_path, ending_with(said))
    assert made.stop_ids[0] == EOS and sorted(made.stop_ids) == stop_ids


def test_so_do_exports_of_exports(tmp_path) -> None:
    weights: Weights = ending_with([START, END, TURN_END])
    for number, kind in enumerate(("gguf", "orbax", "hf", "gguf")):
        (tmp_path / str(number)).mkdir()
        tokenizer_after(kind, tmp_path / str(number), weights)
        path = tmp_path / str(number) / kind
        weights = open_weights(str(path / "model.gguf" if kind == "gguf" else path), step=None, say=print)
    assert sorted(tokenizer_from_files(weights.files, "").stop_ids) == [EOS, START, END, TURN_END]


@pytest.mark.parametrize("kind", ["hf", "gguf"])
def test_the_ends_that_only_a_kind_of_tokenizer_knows_are_written_too(tmp_path, kind) -> None:
    """Those of Llama 3, whose other names are not in Meta's file, and a sentencepiece model that ends at a line."""
    beside = {"generation_config.json": b'{"eos_token_id": 262}'}
    made = tokenizer_after(kind, tmp_path, with_files(beside, tokenizer_model=tiktoken_file()))
    assert sorted(made.stop_ids) == [262, 269, 270]
    (tmp_path / "pieces").mkdir()
    pieces = train_tokenizer(["the cat had to catch the mice"], 290)
    beside = {"generation_config.json": b'{"eos_token_id": [2, 13]}'}
    made = tokenizer_after(kind, tmp_path / "pieces", with_files(beside, tokenizer_model=pieces.to_bytes()))
    assert made.stop_ids == (2, 13)


def test_what_else_is_generated_by_is_kept_and_other_tools_are_told(tmp_path) -> None:
    write_hugging_face(tmp_path, ending_with(END))
    assert json.loads((tmp_path / "generation_config.json").read_text()) == {
        "eos_token_id": [EOS, END],
        "temperature": 0.6,
    }
    assert json.loads((tmp_path / "config.json").read_text())["eos_token_id"] == [EOS, END]
    write_gguf(tmp_path / "model.gguf", ending_with([TURN_END, START, END, HEADER]))
    fields = gguf.GGUFReader(tmp_path / "model.gguf").fields
    told = {name: fields[f"tokenizer.ggml.{name}_token_id"].contents() for name in ("eos", "eot", "eom")}
    # llama.cpp knows <|eot_id|> and <|im_end|> by their names.
    assert told == {"eos": EOS, "eot": START, "eom": HEADER}


def test_llama2c_has_no_other_end_than_eos(tmp_path) -> None:
    pieces = train_tokenizer(["the cat had to catch the mice"], 290).to_bytes()
    weights = with_files({"generation_config.json": b'{"eos_token_id": [2, 13]}'}, tokenizer_model=pieces)
    config = dataclasses.replace(weights.config, vocab_size=290)
    with pytest.raises(UserError, match=r"answers end with '<0x0A>' too, which llama2.c cannot express"):
        write_llama2c(epath.Path(tmp_path) / "model.bin", dataclasses.replace(weights, config=config))


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"eos_token_id": 40}, "eos_token_id 40 is not below vocab_size 40"),
        ({"eos_token_id": [1, -1]}, r"eos_token_id \[1, -1\] is not an id or a list of ids"),
        ({"eos_token_id": "</s>"}, r"eos_token_id '</s>' is not an id or a list of ids"),
        ({"eos_token_id": [True]}, r"eos_token_id \[True\] is not an id"),
    ],
)
def test_ends_that_the_model_cannot_have_are_refused(tmp_path, said, message) -> None:
    write_hugging_face(tmp_path, SmallWeights())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | said))
    with pytest.raises(UserError, match=rf"config\.json: {message}"):
        open_hugging_face(tmp_path)


def test_a_tokenizer_that_is_given_ends_where_the_model_says(tmp_path) -> None:
    """The model has no tokenizer, but a list of ids in its config.json."""
    write_hugging_face(tmp_path, SmallWeights(dataclasses.replace(SMALL, vocab_size=290)))
    config = json.loads((tmp_path / "config.json").read_text()) | {"eos_token_id": [2, 13]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    given = tmp_path / "other.model"
    given.write_bytes(train_tokenizer(["the cat had to catch the mice"], 290).to_bytes())
    opened = open_hugging_face(tmp_path)
    assert tokenizer_for(opened.files, opened.config, str(tmp_path), given=str(given)).stop_ids == (2, 13)


ANSWERS = {
    "the model's own": (TURNS, END),
    "with reasoning": (THINKING, END),
    "one that asks for a system turn": (
        "{% if messages[0].role != 'system' %}{{ raise_exception('no system') }}{% endif %}" + TURNS,
        END,
    ),
    "one that closes all with eos": (TURNS + "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}", END),
    "one that opens with the word": ("You answer.<|eot_id|>" + TURNS, END),
    "one with control tokens within an answer": (
        "{% for m in messages %}<|im_start|>{{ m.role }}<|end_header_id|>{{ m.content }}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>{% endif %}",
        TURN_END,
    ),
    "one of plain text": ("{% for m in messages %}{{ m.role + ': ' + m.content + '\\n' }}{% endfor %}", EOS),
    "a broken one": ("{{ nothing.at.all }}", EOS),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_a_model_stops_where_its_template_taught_it_to(tmp_path, name) -> None:
    """It is asked so by whoever opens the checkpoint or an export of it; before, EOS alone was known."""
    template, end = ANSWERS[name]
    beside = {file: content.encode() for file, content in files({"chat_template": template}).items()}
    source = HuggingFaceTokenizer(tokenizer_json(), beside)
    assert source.stop_ids == (EOS,)
    layout = Layout("model", source)
    weights = with_files(beside, tokenizer_json=tokenizer_json())
    kept = model_files(weights, weights.config, source, layout)
    tuned = {file.removeprefix("model/"): content for file, content in kept.items()}
    assert {*tokenizer_from_files(tuned, "tuned").stop_ids} == {EOS, end}
    exported = tokenizer_after("gguf", tmp_path, with_files(tuned))
    assert {*exported.stop_ids} == {EOS, end} and exported.chat_template == template


@pytest.mark.parametrize(("template", "end"), [("chatml", END), ("llama3", TURN_END), ("alpaca", EOS), ("llama2", EOS)])
def test_so_it_does_with_a_template_of_the_package(template, end) -> None:
    beside = {file: content.encode() for file, content in files({}).items()}
    assert Layout(template, HuggingFaceTokenizer(tokenizer_json(), beside)).end_id == end
