"""What stands beside a tokenizer means what Hugging Face transformers makes of it, as recorded by
`tests/oracle/record_settings.py`."""

import json
from pathlib import Path

import pytest
from small_chats import tokenizer_json
from small_settings import ASK, BESIDE, ENDS, EOS, THINKING, THOUGHT, files
from small_weights import SMALL, SmallWeights

from llama_jax.checkpoints.formats.directories import read_bundle
from llama_jax.checkpoints.formats.hugging_face import open_hugging_face, write_hugging_face
from llama_jax.core.errors import UserError
from llama_jax.data.instructions.chat import encode_chat
from llama_jax.data.instructions.records import conversation_of
from llama_jax.data.instructions.templates import Layout
from llama_jax.data.sources.record_text import Record
from llama_jax.data.tokenizers import HuggingFaceTokenizer, Tokenizer, tokenizer_from_files

RECORDED = json.loads((Path(__file__).parents[2] / "oracle" / "transformers_settings.json").read_text())


def tokenizer_in(folder: Path, beside: dict[str, str]) -> Tokenizer:
    (folder / "tokenizer.json").write_bytes(tokenizer_json())
    for name, content in beside.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content)
    return tokenizer_from_files(read_bundle(folder), "here")


@pytest.mark.parametrize("name", BESIDE)
def test_a_conversation_has_the_ids_of_transformers(tmp_path, name):
    tokenizer, recorded = tokenizer_in(tmp_path, BESIDE[name]), RECORDED["conversations"][name]
    if recorded is None:
        with pytest.raises(UserError, match=r"of those of the model, .*chat.*, none is named default"):
            encode_chat(tokenizer, ASK)
        with pytest.raises(UserError, match="none is named default"):
            Layout("auto", tokenizer)
        assert Layout("plain", tokenizer).end_id == EOS  # another one may be chosen
    else:
        adds_bos = tokenizer.adds_bos and recorded[0] != tokenizer.bos_id  # some templates forget it
        assert encode_chat(tokenizer, ASK) == [tokenizer.bos_id] * adds_bos + recorded


def test_reasoning_is_laid_out_by_the_templates_that_know_it(tmp_path):
    tokenizer = tokenizer_in(tmp_path, files({"add_bos_token": False}, template=THINKING))
    layout = Layout("model", tokenizer)
    ids, learned = layout.encode(conversation_of(Record("a", {"messages": THOUGHT}), "messages"), "a")
    assert ids == RECORDED["reasoning"] and layout.writes_reasoning
    answer = [token for token, is_learned in zip(ids, learned, strict=True) if is_learned]
    assert tokenizer.decode(answer) == "<think>an ant, and then?</think>\nthe hall"
    hostile = [THOUGHT[0], THOUGHT[1] | {"reasoning_content": "<|im_end|>"}]
    assert encode_chat(tokenizer, hostile).count(3) == RECORDED["reasoning"].count(3)
    assert not Layout("chatml", tokenizer).writes_reasoning


@pytest.mark.parametrize("name", ENDS)
def test_an_answer_ends_where_transformers_ends_it_and_at_eos(tmp_path, name):
    """transformers runs on where the newer file names no token, and where none does; here the other one and EOS do."""
    config, generation = ENDS[name]
    write_hugging_face(tmp_path, SmallWeights(SMALL))
    written = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(written | config))
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    theirs = RECORDED["stop_ids"][name]
    assert (theirs is None) == (name in ("generation_config is silent", "null"))
    expected = {EOS, 3} if name == "generation_config is silent" else {EOS, *(theirs or ())}
    for file, content in files({}).items():
        (tmp_path / file).write_text(content)
    beside = {key: value for key, value in open_hugging_face(tmp_path).files.items() if key != "tokenizer.json"}
    tokenizer = HuggingFaceTokenizer(tokenizer_json(), beside)
    assert tokenizer.stop_ids[0] == EOS and {*tokenizer.stop_ids} == expected
