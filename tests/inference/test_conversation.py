"""A conversation: what the model is told, what becomes of answers, and how both are shown."""

import dataclasses
import io
import sys

import jax
import pytest
from reciting import reciting
from rich.console import Console

from llama_jax.core.config import MeshConfig
from llama_jax.core.errors import UserError
from llama_jax.core.mesh import make_mesh
from llama_jax.inference import chat_command
from llama_jax.inference.chat_command import talk
from llama_jax.inference.config import ChatConfig
from llama_jax.inference.conversation import Conversation

COUNTING = "{{ messages[-1].content }}{{ messages | length }}"
"""The model is shown how many messages there are, and answers to that."""
SPEECHES = {
    "1": ["The first one.", "The very first.", "Number one."],
    "2": "After a system prompt.",
    "3": "The second one.",
    "?": "A text goes on.",
}
OPENED = reciting(SPEECHES, template=COUNTING, context_length=64)


MESH = make_mesh(MeshConfig(), jax.devices()[:1])


@pytest.fixture(autouse=True)
def mesh():
    with jax.set_mesh(MESH):
        yield


@pytest.fixture(scope="module")
def shared() -> Conversation:
    with jax.set_mesh(MESH):
        return Conversation(ChatConfig(max_new_tokens=20, temperature=1.0), OPENED, lambda _: None)


@pytest.fixture
def conversation(shared: Conversation) -> Conversation:
    """One with nothing said."""
    shared.turns.clear()
    shared.system = None
    return shared


def answer(pieces) -> str:
    return "".join(pieces)


def test_each_answer_follows_from_all_that_was_said(conversation: Conversation) -> None:
    first = answer(conversation.ask("a"))
    assert first in SPEECHES["1"]
    assert answer(conversation.ask("b")) == SPEECHES["3"]
    assert conversation.messages == [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": SPEECHES["3"]},
    ]
    assert answer(conversation.regenerate()) == SPEECHES["3"]
    conversation.turns.clear()
    conversation.system = "Be brief."
    assert answer(conversation.ask("c")) == SPEECHES["2"]
    assert conversation.turns[-1].tokens == len(SPEECHES["2"]) // 5 + 1


def test_another_answer_is_another_and_yet_the_same_whenever_it_is_asked_for(conversation: Conversation) -> None:
    def seen() -> list[str]:
        conversation.turns.clear()
        return [answer(conversation.ask("a")), *(answer(conversation.regenerate()) for _ in range(9))]

    once = seen()
    assert set(once) == set(SPEECHES["1"]) and once == seen()
    conversation.change("seed", "1")
    assert once != seen()
    conversation.change("seed", "0")


def test_a_stopped_answer_stays_as_far_as_it_came(conversation: Conversation) -> None:
    pieces = conversation.ask("a")
    begun = next(pieces)
    while not begun:
        begun = next(pieces)
    pieces.close()
    assert [turn.answer for turn in conversation.turns] == [begun] and len(begun) == 5
    assert answer(conversation.ask("b")) == SPEECHES["3"]
    conversation.turns.clear()
    conversation.ask("nothing came of it").close()
    assert answer(conversation.ask("a")) in SPEECHES["1"]  # most templates want messages and answers in turn


def test_a_conversation_that_has_become_too_long_can_still_be_cleared(conversation: Conversation) -> None:
    with pytest.raises(UserError, match="the conversation has 103 tokens, and 64 are the most; clear it"):
        answer(conversation.ask("x" * 100))
    assert conversation.turns == []
    assert len(answer(conversation.ask("x" * 60))) == 5 and conversation.turns[-1].tokens == 1  # as much as fits
    conversation.turns.clear()
    answer(conversation.ask("a"))
    assert answer(conversation.ask("b")) == SPEECHES["3"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/sytem x", "/sytem: unknown command; there are /help, .*; did you mean 'system'?"),
        ("/settings temprature 1", "temprature: unknown setting; .*; did you mean 'temperature'?"),
        ("/settings temperature hot", "temperature: 'hot' must be a number"),
        ("/settings top_k 1.5", "top_k: '1.5' must be a whole number"),
        ("/settings top_p 7", "top_p: 7.0 must lie above 0 and be at most 1"),
        ("/settings seed", "seed: '' must be a whole number"),
        ("/regenerate", "regenerate: nothing was said yet"),
        ("/adapter x", "adapter: there are not several to choose from"),
    ],
)
def test_a_command_that_cannot_be_followed_is_explained(conversation, monkeypatch, line: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        said(conversation, monkeypatch, line)


def said(conversation: Conversation, monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    """Say lines by a standard input that is not a terminal."""
    content = "".join(f"{line}\n" for line in lines).encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), "utf-8"))
    talk(conversation, markdown=True)


def test_without_a_terminal_each_line_is_a_message(conversation: Conversation, monkeypatch, capsys) -> None:
    lines = ["a", "", "/system Be brief.", "/clear", "  b  ", "/settings temperature 0.5", "/exit", "never said"]
    said(conversation, monkeypatch, *lines)
    first, second = capsys.readouterr().out.splitlines()
    assert first in SPEECHES["1"] and second == SPEECHES["2"]
    assert conversation.sampling.temperature == 0.5
    conversation.change("temperature", "1")


def test_a_model_without_a_chat_template_continues_each_text_by_itself() -> None:
    plain = reciting(SPEECHES, template=None, context_length=64)
    conversation = Conversation(ChatConfig(), plain, lambda _: None)
    for _ in range(2):
        assert answer(conversation.ask("Does a text go on?")) == SPEECHES["?"]
    with pytest.raises(UserError, match="system: the model has no chat template"):
        conversation.system = "Be brief."


def test_what_the_settings_and_the_model_do_not_allow_is_said_before_anything_is_made() -> None:
    with pytest.raises(UserError, match="--length 65: the model's context is 64"):
        Conversation(ChatConfig(length=65), OPENED, lambda _: None)
    several = dataclasses.replace(OPENED, adapters=("runs/one", "runs/two"))
    conversation = Conversation(ChatConfig(), several, lambda _: None)
    assert conversation.adapter == 0
    for name, number in (("2", 1), ("one", 0), ("none", None), ("runs/two", 1)):
        conversation.choose_adapter(name)
        assert conversation.adapter == number
    for name in ("runs", "3", "0"):
        with pytest.raises(UserError, match=f"adapter: '{name}' is not one of runs/one, runs/two or none"):
            conversation.choose_adapter(name)


ANSWER = """# Title

A paragraph with **bold** and <b>markup</b>, and ![a picture](https://example.org/p.png).

<div>a block</div>

```python
first = 1

second = 2
```

1. one

   still one

2. two
"""


def shown(pieces: list[str], *, markdown: bool = True) -> str:
    """What is sent to a terminal of 120 columns."""
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=120, height=30, color_system=None, legacy_windows=False)
    with chat_command._Shown(console, markdown) as display:
        for piece in pieces:
            display.add(piece)
    return file.getvalue()


def test_markdown_is_laid_out_and_markup_is_shown() -> None:
    text = shown([ANSWER])
    for part in ("A paragraph with bold and <b>markup</b>", "![a picture](https://example.org/p.png)"):
        assert part in text
    for part in ("<div>a block</div>", "first = 1", "second = 2", "1 one", "still one", "2 two"):
        assert part in text


def test_blocks_are_cut_where_nothing_can_change_them_any_more() -> None:
    whole, rest = chat_command._whole_blocks(ANSWER)
    assert rest == "2. two\n"
    for end in range(len(ANSWER)):
        whole, rest = chat_command._whole_blocks(ANSWER[:end])
        assert whole + rest == ANSWER[:end] and whole.count("```") in (0, 2)
        assert not rest.startswith((" ", "\n"))


def test_no_answer_reaches_beyond_its_text_in_the_terminal() -> None:
    hostile = "a\x1b]0;title\x07b\x1b[2Jc\rd\x9b2Je\x08f\x00"
    for markdown in (True, False):
        text = shown(list(hostile), markdown=markdown)
        assert "\x1b]0;" not in text and "\x1b[2J" not in text and "\x9b" not in text and "\x07" not in text
    assert shown(list(hostile), markdown=False) == "a]0;titleb[2Jcd2Jef\n"
