"""Calls of functions: how a model writes them, the grammar of an answer that does, and the reader that finds them."""

import json

import numpy as np
import pytest
from small_tokenizers import tiktoken_file

from llama_jax.data.tokenizers import TiktokenTokenizer
from llama_jax.inference.server.shapes.call_layout import PLAIN, CallLayout, layout_of, with_calls_as_text
from llama_jax.inference.server.shapes.calls import CallReader, Tool, calls_grammar
from llama_jax.inference.server.shapes.grammar import Grammars

WHOLE = CallLayout('{"name": "', '", "parameters": ', "}", None, True)
"""Llama 3.1's: a call is the whole answer."""

# In the manner of the templates of Qwen 2.5, Llama 3.1 and Mistral.
BETWEEN_TAGS = """{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>
{{ m.content }}{% for c in m.tool_calls %}{{ '\n' }}<tool_call>
{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}
</tool_call>{% endfor %}<|eot_id|>
{% endfor %}{% if tools and add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>
{% endif %}"""
ALONE = """{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>

{% if m.tool_calls %}{% if m.tool_calls | length != 1 %}{{ raise_exception('one call') }}{% endif %}
{%- set f = m.tool_calls[0].function %}{"name": "{{ f.name }}", "parameters": {{ f.arguments | tojson }}}
{%- else %}{{ m.content }}{% endif %}<|eot_id|>{% endfor %}
{%- if tools and add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>

{% endif %}"""
BEHIND_A_TOKEN = """{% for m in messages %}{{ m.content }}{% for c in m.tool_calls %}<|python_tag|>
{{ c.function.name }} {{ c.function.arguments | tojson }}{% endfor %}{% endfor %}{{ tools and '' }}"""
XML = """{% for m in messages %}{{ m.content }}{% for c in m.tool_calls %}<f={{ c.function.name }}>
{% for k, v in c.function.arguments.items() %}<{{ k }}>{{ v }}{% endfor %}{% endfor %}{% endfor %}{{ tools and '' }}"""


@pytest.mark.parametrize(
    ("template", "layout"),
    [
        ("{% for m in messages %}{{ m.content }}{% endfor %}", PLAIN),
        (BETWEEN_TAGS, CallLayout(PLAIN.opening, PLAIN.middle, PLAIN.closing, "\n", True)),
        (ALONE, WHOLE),
        (BEHIND_A_TOKEN, None),
        (XML, None),
        ("{{ tools }}{{ raise_exception('no') }}", None),
    ],
)
def test_the_layout_of_calls_is_seen_by_having_some_written(template, layout):
    assert layout_of(TiktokenTokenizer(tiktoken_file()).with_chat_template(template)) == layout


TOOLS = [
    Tool("add", "Adds.", {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}),
    Tool("now", None, None),
]
ADD, NOW = ("add", '{"a": 1}'), ("now", "{}")


def _accepts(grammar: str, text: str) -> bool:
    """Whether a whole answer may be this text."""
    tokenizer = TiktokenTokenizer(tiktoken_file())
    grammars = Grammars(tokenizer)
    grammars.check(grammar, "field")
    constraint = grammars.constraint(grammar)
    for token in (*text.encode(), tokenizer.stop_ids[0]):
        allowed = np.unpackbits(constraint.allowed().view(np.uint8), bitorder="little")
        if not allowed[token]:
            return False
        constraint.push(token)
    return True


@pytest.mark.parametrize("layout", [PLAIN, WHOLE])
def test_an_answer_is_held_to_the_calls_that_are_asked_for(layout):
    add, now = (layout.written(*call) for call in (ADD, NOW))
    other, wrong = layout.written("sub", "{}"), layout.written("add", '{"a": true}')
    must = calls_grammar(TOOLS, layout, otherwise=None, parallel=False)
    assert [_accepts(must, text) for text in (add, now, "hello", "", other, wrong)] == [True, True, *[False] * 4]
    may = calls_grammar(TOOLS, layout, otherwise="", parallel=True)
    assert [_accepts(may, text) for text in (add, "hello", "", other, wrong)] == [True, True, True, False, False]
    several = f"{add}\n{now}"
    assert _accepts(may, several) == (layout is PLAIN) and not _accepts(must, several)
    assert _accepts(may, f"so: {add}") and _accepts(may, f"so: {other}") == (layout is WHOLE)  # there it is text
    named = calls_grammar(TOOLS[:1], layout, otherwise=None, parallel=False)
    assert _accepts(named, add) and not _accepts(named, now)
    json_or_call = calls_grammar(TOOLS, layout, otherwise='"[1]"', parallel=False)
    assert [_accepts(json_or_call, text) for text in (add, "[1]", "hello")] == [True, True, False]


def _read(layout: CallLayout, pieces: list[str], reason: str = "stop") -> tuple[str, list[tuple[str, str]], str]:
    reader, content, calls = CallReader(layout), "", []
    deltas = [delta for piece in pieces for delta in reader.push(piece)]
    rest, finish = reader.finish(reason)
    for delta in deltas + rest:
        content += delta.get("content", "")
        for call in delta.get("tool_calls", ()):
            if "id" in call:
                assert call["index"] == len(calls) and call["id"].startswith("call_") and call["type"] == "function"
                calls.append((call["function"]["name"], ""))
            name, arguments = calls[call["index"]]
            calls[call["index"]] = name, arguments + call["function"]["arguments"]
    return content, calls, finish


HARD = ("add", '{"a": "\\"}{[\\\\", "b": [{"c": "</tool_call>"}]}')


@pytest.mark.parametrize(
    ("layout", "text", "content", "calls"),
    [
        (PLAIN, "hello <b> <tool", "hello <b> <tool", []),
        (PLAIN, f"Well. {PLAIN.written(*HARD)}", "Well. ", [HARD]),
        (PLAIN, f"{PLAIN.written(*ADD)}\n{PLAIN.written(*NOW)}", "", [ADD, NOW]),
        (WHOLE, WHOLE.written(*HARD), "", [HARD]),
        (WHOLE, "hello {", "hello {", []),
        (WHOLE, "", "", []),
    ],
)
def test_calls_are_read_wherever_the_text_is_cut(layout, text, content, calls):
    finish = "tool_calls" if calls else "stop"
    for size in range(1, 20):
        pieces = [text[start : start + size] for start in range(0, len(text), size)]
        assert _read(layout, pieces) == (content, calls, finish)


def test_a_call_that_is_cut_off_is_given_as_far_as_it_came():
    whole = PLAIN.written("add", '{"a": 12}')
    assert _read(PLAIN, [whole[: whole.index("12") + 1]], "length") == ("", [("add", '{"a": 1')], "length")
    assert _read(PLAIN, [whole[:20]], "length") == (whole[:20], [], "length")


def test_a_template_without_tools_is_told_of_them_in_words():
    call = {"type": "function", "id": "1", "function": {"name": "add", "arguments": {"a": 1}}}
    said = [
        {"role": "user", "content": "1?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "2", "tool_call_id": "1"},
        {"role": "tool", "content": "3", "tool_call_id": "1"},
    ]
    system, *rest = with_calls_as_text(said, [tool.described for tool in TOOLS])
    assert system["role"] == "system" and json.dumps(TOOLS[0].described["function"]) in system["content"]
    assert rest == [
        said[0],
        {"role": "assistant", "content": PLAIN.written(*ADD)},
        {"role": "user", "content": "<tool_response>\n2\n</tool_response>\n<tool_response>\n3\n</tool_response>"},
    ]
    told = with_calls_as_text([{"role": "system", "content": "Be brief."}, *said[:1]], [TOOLS[0].described])
    assert [each["role"] for each in told] == ["system", "user"] and told[0]["content"].startswith("Be brief.\n\n")
    assert with_calls_as_text(said[:1], []) == said[:1]
