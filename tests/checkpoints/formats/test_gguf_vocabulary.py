"""What the keys of a GGUF file say of its tokenizer, and, where they say nothing, what llama.cpp takes them to mean."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from small_chats import tokenizer_json
from small_settings import files
from small_words import MERGES, NAMES, TEXTS, TOKENS

from llama_jax.checkpoints.formats.gguf_header import GgufValues
from llama_jax.checkpoints.formats.gguf_vocabulary import add_vocabulary, vocabulary_files
from llama_jax.core.errors import UserError
from llama_jax.data.instructions.chat import encode_chat
from llama_jax.data.tokenizers import Tokenizer, tokenizer_from_files

RECORDED = json.loads((Path(__file__).parents[2] / "oracle" / "llama_cpp_words.json").read_text())


def tokenizer_of(keys: dict[str, Any], *, tokens: list[str] = TOKENS) -> tuple[Tokenizer, list[str]]:
    """The tokenizer of a file with these keys (without `tokenizer.`), and what is said about it."""
    values = {
        "ggml.model": "gpt2",
        "ggml.pre": "llama-bpe",
        "ggml.tokens": tokens,
        "ggml.merges": MERGES,
        "ggml.token_type": np.array([3 if token[:1] == "<" != token else 1 for token in tokens], np.int32),
        "ggml.bos_token_id": 0,
        "ggml.eos_token_id": 1,
    }
    told = {name: value for name, value in (values | keys).items() if value is not None}
    full = {name if name.startswith("llama_jax.") else f"tokenizer.{name}": value for name, value in told.items()}
    said: list[str] = []
    found = vocabulary_files(GgufValues("a.gguf", full), len(tokens), said.append)
    return tokenizer_from_files(found, "a.gguf"), said


@pytest.mark.parametrize("name", NAMES)
def test_words_are_split_as_llama_cpp_splits_them(name) -> None:
    tokenizer, said = tokenizer_of({"ggml.pre": None if name == "nameless" else name})
    for text in TEXTS:
        assert [*tokenizer.encode(text, bos=tokenizer.adds_bos)] == RECORDED["ids"][name][text], text
    assert len(said) == (name == "nameless")
    if said:
        assert "a.gguf has no tokenizer.ggml.pre; words are split as llama.cpp does by default" in said[0]


def test_a_splitting_that_is_not_known_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"a\.gguf: tokenizer: splits words by 'deepseek-llm', which is not supported"):
        tokenizer_of({"ggml.pre": "deepseek-llm"})


def ends(*names: str, **keys: Any) -> tuple[list[str], Tokenizer]:
    """Names of the tokens that end an answer, of a vocabulary with these tokens more, which are of type normal."""
    tokens = [*TOKENS, *names]
    types = [3 if token in TOKENS[:2] else 1 for token in tokens]
    told = {f"ggml.{key}_token_id": tokens.index(name) for key, name in keys.items()}
    tokenizer, _ = tokenizer_of({"ggml.token_type": np.array(types, np.int32)} | told, tokens=tokens)
    return sorted(tokens[token] for token in tokenizer.stop_ids), tokenizer


def test_an_answer_ends_with_the_usual_names_where_no_key_tells() -> None:
    found, tokenizer = ends("<|eot_id|>", "[EOT]", "<|im_start|>", "<end_of_turn>")
    assert found == ["<e>", "<end_of_turn>", "<|eot_id|>", "[EOT]"]
    # llama.cpp takes them for control tokens, whatever their type says; so nobody ends a turn by writing of it.
    assert {"<|eot_id|>", "[EOT]"} < tokenizer.special_tokens.keys() and "<|im_start|>" not in tokenizer.special_tokens
    assert ends("<|im_start|>")[0] == ["<e>"]


def test_keys_tell_of_other_names() -> None:
    assert ends("<over>", "<out>", eot="<over>", eom="<out>")[0] == ["<e>", "<out>", "<over>"]
    assert ends("<over>", "<|im_end|>", eot="<over>")[0] == ["<e>", "<over>", "<|im_end|>"]


def test_without_eos_the_usual_names_stand_for_it() -> None:
    tokenizer, _ = tokenizer_of({"ggml.eos_token_id": None}, tokens=[*TOKENS, "<|end_of_text|>", "<|eot_id|>"])
    assert tokenizer.eos_id == len(TOKENS) and tokenizer.stop_ids == (len(TOKENS), len(TOKENS) + 1)
    with pytest.raises(UserError, match="names no EOS token"):
        tokenizer_of({"ggml.eos_token_id": None})


def test_a_list_of_all_ends_is_exact() -> None:
    tokens = [*TOKENS, "<|eot_id|>", "<|im_end|>"]
    listed = {"llama_jax.stop_token_ids": np.array([1, len(TOKENS)], np.int32)}
    assert tokenizer_of(listed, tokens=tokens)[0].stop_ids == (1, len(TOKENS))
    # Whoever changes EOS, as files of Llama 3 needed it, is heard.
    changed = listed | {"ggml.eos_token_id": len(TOKENS) + 1}
    assert tokenizer_of(changed, tokens=tokens)[0].stop_ids == (len(TOKENS) + 1, 1, len(TOKENS))
    for wrong in (np.array([999], np.int32), np.array([-1], np.int32), "1"):
        with pytest.raises(UserError, match=r"a\.gguf: llama_jax\.stop_token_ids"):
            tokenizer_of({"llama_jax.stop_token_ids": wrong})


def test_several_chat_templates_are_kept_by_name() -> None:
    keys = {"chat_template": "a", "chat_templates": ["rag", "tool_use"], "chat_template.rag": "b"}
    tokenizer, _ = tokenizer_of(keys | {"chat_template.tool_use": "c"})
    assert tokenizer.settings.chat_templates == {"default": "a", "rag": "b", "tool_use": "c"}
    assert tokenizer.chat_template == "a"
    tokenizer, _ = tokenizer_of(
        {"chat_templates": ["rag", "chat"], "chat_template.rag": "b", "chat_template.chat": "c"}
    )
    with pytest.raises(UserError, match="of those of the model, chat, rag, none is named default"):
        encode_chat(tokenizer, [{"role": "user", "content": "a"}])


@pytest.mark.parametrize(
    "template", ["{{ pad_token }}{{ messages[0].content }}", "\n{{ pad_token }}", "{{ bos_token }}"]
)
def test_a_template_that_is_written_spells_the_tokens_that_llama_cpp_does_not_know(template) -> None:
    beside = files({"pad_token": "<|eot_id|>", "chat_template": template})
    source = {"tokenizer.json": tokenizer_json()} | {name: text.encode() for name, text in beside.items()}
    writer = gguf.GGUFWriter(None, "llama")
    add_vocabulary(writer, source, 300, "here")
    written = writer.kv_data[0]["tokenizer.chat_template"].value
    assert (written == template) == ("pad_token" not in template)
    said = [{"role": "user", "content": "hello"}]
    told = source | {name: text.encode() for name, text in files({}, template=written).items()}
    assert encode_chat(tokenizer_from_files(told, ""), said) == encode_chat(tokenizer_from_files(source, ""), said)
