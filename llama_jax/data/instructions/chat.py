"""Conversations to token ids, by the model's own chat template.

A template comes with a model, so it is untrusted code: it runs sandboxed, in a process that is killed when it takes too
long. Messages are text and never become control tokens, whatever the template does with them."""

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llama_jax.core.errors import UserError
from llama_jax.core.json_files import shown
from llama_jax.data.instructions.part_encoding import Part
from llama_jax.data.instructions.template_process import render_template
from llama_jax.data.sources.documents import BadRecordError
from llama_jax.data.tokenizers import Tokenizer
from llama_jax.data.tokenizers.tokenizer import names_pattern

Message = Mapping[str, Any]
"""What one side says: `role` ("system", "user", "assistant", …) and `content`. Where a template lays them out, also
`reasoning_content`, what it thought before; `tool_calls`, those it made; `tool_call_id` and `name`, where a tool
answers one."""

Tools = Sequence[Mapping[str, Any]]
"""Functions that may be called, as OpenAI and transformers describe them: JSON."""

REASONING = "reasoning_content"
"""The field of a message that says what was thought before it; not every template lays it out."""
_OPTIONAL = frozenset({REASONING, "tool_calls", "tool_call_id", "name"})
_ROLE = re.compile(r"[A-Za-z0-9_-]{1,64}")
_PRIVATE_USE = (range(0xE000, 0xF900), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))


@dataclass(frozen=True)
class ChatTemplate:
    """Jinja source that lays a conversation out as text, as transformers' `apply_chat_template` does.

    Args:
        source: The template.
        names: What it knows the model's tokens by, such as `bos_token`.
        trusted: It comes with this package, so it is rendered in this process.
    """

    source: str
    names: Mapping[str, str]
    trusted: bool = False

    def render(
        self, messages: Sequence[Message], *, tools: Tools | None = None, add_generation_prompt: bool = True
    ) -> str:
        """The conversation as text.

        Args:
            tools: Functions that may be called.
            add_generation_prompt: End with what opens the assistant's answer.

        Raises:
            UserError: the template is wrong, or refuses these messages.
        """
        given = [dict(message) for message in messages]
        extra = {"tools": tools, "documents": None, "add_generation_prompt": add_generation_prompt}
        variables = {"messages": given, **extra, **self.names}
        if not self.trusted:
            return render_template(self.source, variables)
        from llama_jax.data.instructions.template_worker import rendered  # jinja2, for those who need it

        return rendered(self.source, variables)


def encode_chat(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    tools: Tools | None = None,
    add_generation_prompt: bool = True,
    goes_on: bool = False,
) -> list[int]:
    """Ids of a conversation, opened by exactly one BOS if the template writes one or the model expects one.

    Control tokens come from the template alone: their names in a message or a tool are text. Where none holds such a
    name, the ids are those of transformers' `apply_chat_template`, but for a BOS that its template forgot.

    Args:
        messages: What was said, in turn.
        tools: Functions that may be called; only some templates lay them out.
        add_generation_prompt: End with what opens the assistant's answer.
        goes_on: End with the last message, as if it were not complete; takes the place of `add_generation_prompt`.

    Raises:
        UserError: the model has no chat template, a message is malformed, or the template refuses the messages.
    """
    if tokenizer.chat_template is None:
        raise UserError("chat: the model has no chat template; use a model tuned for conversations, or a plain prompt")
    _check(messages)
    template = ChatTemplate(tokenizer.chat_template, tokenizer.token_names)
    hidden = _Hidden.of(tokenizer, [tokenizer.chat_template, *_said(messages), *_texts(tools)])
    if goes_on:
        last = messages[-1]
        messages = [*messages[:-1], {**last, "content": f"{last['content']}{hidden.mark}"}]
    text = _safe_text(template, messages, hidden, add_generation_prompt and not goes_on, tools)[0]
    if goes_on:
        text, *after = text.split(hidden.mark)
        if len(after) != 1:
            raise UserError(
                f"messages[{len(messages) - 1}].content: the chat template does not lay it out as it is, so it cannot "
                "go on"
            )
    ids = _encoded(tokenizer, text, hidden)
    if tokenizer.adds_bos and ids[:1] != [tokenizer.bos_id]:
        ids = [tokenizer.bos_id, *ids]
    while ids[:2] == [tokenizer.bos_id] * 2:
        ids = ids[1:]
    return ids


def chat_parts(tokenizer: Tokenizer, messages: Sequence[Message], answers: Sequence[bool], where: str) -> list[Part]:
    """A conversation as its template lays it out: text and control tokens, those learned that answer. An answer ends
    with the last control token that the template writes after it; EOS is put where it writes none after the last.

    Args:
        messages: What was said, in turn.
        answers: Whether each is an answer to learn.
        where: What leads to the record, for errors.

    Raises:
        BadRecordError: the template refuses the messages, or does not begin with what it asks an answer with: it
            leaves out or changes what was said before, so that no one text holds all answers as they are asked for.
    """
    assert tokenizer.chat_template is not None
    template = ChatTemplate(tokenizer.chat_template, tokenizer.token_names)
    hidden = _Hidden.of(tokenizer, [tokenizer.chat_template, *_said(messages)])
    try:
        text, hide = _safe_text(template, messages, hidden, False)
        return _parts(tokenizer, template, hidden.in_messages(messages, hide), answers, text, hidden)
    except UserError as error:
        raise BadRecordError("template", where, str(error)) from None


def laid_out_parts(
    tokenizer: Tokenizer,
    source: str,
    messages: Sequence[Message],
    answers: Sequence[bool],
    *,
    add_generation_prompt: bool,
) -> list[Part]:
    """The same by a template that comes with the package; names of control tokens in a message become control tokens.

    Args:
        add_generation_prompt: End with what opens the assistant's answer.
    """
    template = ChatTemplate(source, tokenizer.token_names, trusted=True)
    text = template.render(messages, add_generation_prompt=add_generation_prompt)
    nothing_hidden = _Hidden(names_pattern(tokenizer.special_tokens), {})
    return _parts(tokenizer, template, messages, answers, text, nothing_hidden)


def _parts(
    tokenizer: Tokenizer,
    template: ChatTemplate,
    messages: Sequence[Message],
    answers: Sequence[bool],
    text: str,
    hidden: "_Hidden",
) -> list[Part]:
    """The parts of a conversation that its template laid out as `text`.

    Raises:
        UserError: the template does not begin with what it asks for an answer with.
    """
    parts: list[Part] = []
    end = 0
    for number in (number for number, is_answer in enumerate(answers) if is_answer):
        before = template.render(messages[:number], add_generation_prompt=True)
        said = messages[: number + 1]
        after = text if len(said) == len(messages) else template.render(said, add_generation_prompt=False)
        if not (after.startswith(before) and text.startswith(after)):
            message = f"the chat template lays turn {number + 1} out otherwise than it asks for it"
            raise UserError(f"{message}; choose another data.template")
        parts += [Part(part) for part in _controls_and_text(tokenizer, text[end : len(before)], hidden)]
        answer = _controls_and_text(tokenizer, text[len(before) : len(after)], hidden)
        parts += _answer(answer, tokenizer, len(after) == len(text))
        end = len(after)
    return [*parts, *(Part(part) for part in _controls_and_text(tokenizer, text[end:], hidden))]


def _answer(parts: list[str | int], tokenizer: Tokenizer, is_last: bool) -> list[Part]:
    """Learned up to the last control token."""
    ends = [number for number, part in enumerate(parts) if isinstance(part, int)]
    if not ends and is_last:
        return [*(Part(part, True) for part in parts), Part(tokenizer.eos_id, True)]
    last = ends[-1] if ends else len(parts)
    return [Part(part, number <= last) for number, part in enumerate(parts)]


def _controls_and_text(tokenizer: Tokenizer, text: str, hidden: "_Hidden") -> list[str | int]:
    parts = hidden.names.split(text)
    return [
        tokenizer.control_id(part) if index % 2 else hidden.restored(part) for index, part in enumerate(parts) if part
    ]


@dataclass(frozen=True)
class _Hidden:
    """How names of control tokens are hidden from whoever looks for them in a rendered text: the first and the last
    character of each is replaced by one that no message and no template contains."""

    names: re.Pattern[str]
    stand_ins: Mapping[int, str]
    mark: str = ""
    """Another such character, which stands for none."""

    @staticmethod
    def of(tokenizer: Tokenizer, texts: Iterable[str]) -> "_Hidden":
        ends = sorted({character for name in tokenizer.special_tokens for character in (name[0], name[-1])})
        used = set().union(*texts)
        points = map(chr, itertools.chain(*_PRIVATE_USE))
        free = itertools.islice((character for character in points if character not in used), len(ends) + 1)
        mark, *stand_ins = [*free] or [""]
        if len(stand_ins) < len(ends):
            raise UserError("messages: hold nearly every character of private use; none is left to mark places with")
        pairs = zip(map(ord, ends), stand_ins, strict=True)
        return _Hidden(names_pattern(tokenizer.special_tokens), dict(pairs), mark)

    def in_names(self, text: str) -> str:
        """Hides each name."""
        return self.names.sub(lambda match: match[0].translate(self.stand_ins), text)

    def everywhere(self, text: str) -> str:
        """Hides every character that a name begins or ends with."""
        return text.translate(self.stand_ins)

    def in_messages(self, messages: Sequence[Message], hide: Callable[[str], str]) -> list[dict[str, Any]]:
        """Messages in which all that was said is hidden, by one of the two above."""
        return [
            {key: value if key == "role" else self.within(value, hide) for key, value in message.items()}
            for message in messages
        ]

    def within(self, value: Any, hide: Callable[[str], str]) -> Any:
        """The same of a JSON value. A template looks for keys such as `name`, of which no character may be missing."""
        if isinstance(value, str):
            return hide(value)
        if isinstance(value, Mapping):
            return {
                (self.in_names if key.isidentifier() else hide)(key): self.within(each, hide)
                for key, each in value.items()
            }
        return [self.within(each, hide) for each in value] if isinstance(value, list | tuple) else value

    def restored(self, text: str) -> str:
        """Undoes either."""
        return text.translate({ord(stand_in): character for character, stand_in in self.stand_ins.items()})


def _safe_text(
    template: ChatTemplate,
    messages: Sequence[Message],
    hidden: _Hidden,
    add_generation_prompt: bool,
    tools: Tools | None = None,
) -> tuple[str, Callable[[str], str]]:
    """The rendered text, in which each name of a control token was written by the template, and how it was hidden in
    what people say.

    Hiding names does not stop a template that joins two messages, or removes what is between them, from making a name
    of their parts. Hiding every character that could be part of one does, but a template may look for some of them,
    such as `</think>`. So the first is taken if it has just the control tokens of the second.
    """

    def rendered(hide: Callable[[str], str]) -> str:
        described = None if tools is None else [hidden.within(tool, hide) for tool in tools]
        return template.render(
            hidden.in_messages(messages, hide), tools=described, add_generation_prompt=add_generation_prompt
        )

    text = rendered(hidden.in_names)
    if all(hidden.everywhere(text) == text for text in (*_said(messages), *_texts(tools))):
        return text, hidden.in_names
    strict = rendered(hidden.everywhere)
    is_same = hidden.names.findall(text) == hidden.names.findall(strict)
    return (text, hidden.in_names) if is_same else (strict, hidden.everywhere)


def _texts(value: Any) -> Iterator[str]:
    """All texts within a JSON value, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from (key, *_texts(each))
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _texts(each)


def _said(messages: Sequence[Message]) -> list[str]:
    return [text for message in messages for key, each in message.items() if key != "role" for text in _texts(each)]


def _encoded(tokenizer: Tokenizer, text: str, hidden: _Hidden) -> list[int]:
    if hidden.restored(text) == text:
        return tokenizer.encode(text, special=True)
    ids: list[int] = []
    for part in _controls_and_text(tokenizer, text, hidden):
        ids += [part] if isinstance(part, int) else tokenizer.encode(part)
    return ids


def _check(messages: Sequence[Message]) -> None:
    if not messages:
        raise UserError("messages: there are none; give at least one object with role and content")
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping) or set(message) - _OPTIONAL != {"role", "content"}:
            raise UserError(f"messages[{number}]: {shown(message)} is not an object with role and content")
        if not isinstance(role := message["role"], str) or not _ROLE.fullmatch(role):
            raise UserError(f"messages[{number}].role: {shown(role)} is not a word such as user or assistant")
        for key in message.keys() - {"role"}:
            if key != "tool_calls" and not isinstance(message[key], str):
                raise UserError(f"messages[{number}].{key}: {shown(message[key])} is not text")
            try:
                "".join(_texts(message[key])).encode()
            except UnicodeEncodeError:
                raise UserError(f"messages[{number}].{key}: holds an unpaired surrogate") from None
