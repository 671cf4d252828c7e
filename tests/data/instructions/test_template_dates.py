"""The date of a chat template stays with a run: the texts are those that transformers gives on that day, as recorded
by `tests/oracle/record_dates.py`."""

import json
import pickle
import time
from pathlib import Path

import pytest
from dated_templates import DAYS, MESSAGES, TEMPLATES
from small_chats import tokenizer_json

from llama_jax.core.errors import UserError
from llama_jax.data.config import InstructionDataConfig
from llama_jax.data.instructions.chat import encode_chat
from llama_jax.data.instructions.template_dates import dated, today, with_date
from llama_jax.data.instructions.template_process import render_template
from llama_jax.data.instructions.templates import Layout
from llama_jax.data.tokenizers import HuggingFaceTokenizer, tokenizer_from_files

RECORDED = json.loads((Path(__file__).parents[2] / "oracle" / "transformers_dates.json").read_text())
LLAMA = TEMPLATES["as Llama 3.2's"]


def tokenizer_of(template: str) -> HuggingFaceTokenizer:
    config = {"bos_token": "<|bos|>", "eos_token": "<|eos|>", "add_bos_token": False, "chat_template": "an older one"}
    beside = {"tokenizer_config.json": json.dumps(config).encode(), "chat_template.jinja": template.encode()}
    return HuggingFaceTokenizer(tokenizer_json(), beside)


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("day", DAYS)
def test_a_template_with_its_date_gives_what_it_gives_on_that_day(name, day):
    variables = {"messages": MESSAGES, "bos_token": "<s>"}
    assert render_template(dated(TEMPLATES[name], day), variables) == RECORDED[name][day]


def set_day(monkeypatch, zone: str) -> str:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    return time.strftime("%d %b %Y")


@pytest.fixture
def zones(monkeypatch):
    yield lambda zone: set_day(monkeypatch, zone)
    monkeypatch.undo()
    time.tzset()


def test_a_tokenizer_keeps_its_date_on_another_day_and_in_all_that_is_made_of_it(zones):
    """Two time zones 26 hours apart stand for two days."""
    first_day = zones("XXX-14")
    tokenizer = with_date(tokenizer_of(LLAMA), None)
    copies = [tokenizer, pickle.loads(pickle.dumps(tokenizer)), tokenizer_from_files(tokenizer.files(), "an export")]
    assert zones("XXX+12") != first_day
    for each in copies:
        assert first_day in each.decode(encode_chat(each, MESSAGES[:1]))
        assert Layout("model", each).chat_template == tokenizer.chat_template
        assert with_date(each, today()) is each  # who tunes it once more asks as it was asked before
    assert first_day not in (new := with_date(tokenizer_of(LLAMA), None)).decode(encode_chat(new, MESSAGES[:1]))


def test_a_template_that_does_not_ask_for_the_clock_is_left_alone():
    tokenizer = tokenizer_of("{{ messages[0].content }}")
    assert with_date(tokenizer, "2026-11-27") is tokenizer
    plain = HuggingFaceTokenizer(tokenizer_json(), {"tokenizer_config.json": b'{"eos_token": "<|eos|>"}'})
    assert plain.chat_template is None and with_date(plain, None) is plain


@pytest.mark.parametrize("wrong", ["27 Nov 2026", "2026-11-31", "20261127", "today", ""])
def test_what_is_no_date_is_refused(wrong):
    with pytest.raises(UserError, match=f"data.template_date: '{wrong}' is not a date such as 2026-11-27"):
        InstructionDataConfig(template_date=wrong)
