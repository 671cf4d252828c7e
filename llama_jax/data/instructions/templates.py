"""Conversations to text and control tokens: the templates of Alpaca, ChatML, Llama 2 and Llama 3, and the model's own.

Each is Jinja source, which is saved with a fine-tuned model so that it is asked as it was trained."""

import functools
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from llama_jax.core.errors import UserError
from llama_jax.data.config import Template
from llama_jax.data.instructions.chat import REASONING, ChatTemplate, chat_parts, encode_chat, laid_out_parts
from llama_jax.data.instructions.part_encoding import Encoded, Part, PartEncoder
from llama_jax.data.instructions.records import Conversation, Turn
from llama_jax.data.sources.documents import BadRecordError
from llama_jax.data.tokenizers import Tokenizer

_HEADER = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
_HEADER_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
    "response that appropriately completes the request."
)


def _joined(turns: Conversation) -> Conversation:
    """What a user says as one text; as LLaMA-Factory joins Alpaca's two fields."""
    return tuple(turn._replace(content=f"{turn.content}\n{turn.input}") if turn.input else turn for turn in turns)


def _with_input_sections(turns: Conversation) -> Conversation:
    """Alpaca's second field in a section of its own, announced by the first sentences."""
    announced = any(turn.input for turn in turns) and turns[0].role != "system"
    sections = [
        turn._replace(content=f"{turn.content}\n\n### Input:\n{turn.input}") if turn.input else turn for turn in turns
    ]
    return (*[Turn("system", _HEADER_WITH_INPUT)] * announced, *sections)


@dataclass(frozen=True)
class _Named:
    """A template that comes with the package. It may trim what is said, but must not look at it or change it."""

    jinja: str
    tokens: tuple[str, ...]
    """Names of the control tokens it needs; `bos` and `eos` stand for the model's own."""
    with_input: Callable[[Conversation], Conversation] = _joined
    """Turns whose content says what their `input` does too."""


def _alpaca(after_response: str) -> _Named:
    """Stanford Alpaca's (train.py, PROMPT_DICT): nothing between "### Response:" and the answer. A system turn takes
    the place of the first sentences; further turns follow without them."""
    jinja = (
        "{%- if messages[0].role != 'system' %}{{ '" + _HEADER + "\\n\\n' }}{% endif %}"
        "{%- for message in messages %}"
        "{%- if message.role == 'system' %}{{ message.content + '\\n\\n' }}"
        "{%- elif message.role == 'user' %}"
        "{%- if loop.index0 > 1 or (loop.index0 == 1 and messages[0].role != 'system') %}{{ '\\n\\n' }}{% endif %}"
        "{{ '### Instruction:\\n' + message.content + '\\n\\n### Response:" + after_response + "' }}"
        "{%- else %}{{ message.content + eos_token }}{% endif %}"
        "{%- endfor %}"
    )
    return _Named(jinja, ("eos",), _with_input_sections)


_CHATML = (
    "{%- for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

# Meta's (llama/generation.py, chat_completion), but for the space that it writes between an answer and EOS: a model
# that learned it would have to write it before it can end.
_LLAMA2 = (
    "{%- set told = namespace(system='') %}"
    "{%- for message in messages %}"
    "{%- if message.role == 'system' %}"
    "{%- set told.system = '<<SYS>>\\n' + message.content + '\\n<</SYS>>\\n\\n' %}"
    "{%- elif message.role == 'user' %}"
    "{{ bos_token + '[INST] ' + (told.system + message.content) | trim + ' [/INST]' }}"
    "{%- set told.system = '' %}"
    "{%- else %}{{ ' ' + message.content | trim + eos_token }}{% endif %}"
    "{%- endfor %}"
)

# Meta's (llama3/tokenizer.py, ChatFormat).
_LLAMA3 = (
    "{{- bos_token }}"
    "{%- for message in messages %}"
    "{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + message.content | trim + '<|eot_id|>' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)

_PLAIN = (
    "{%- for message in messages %}{{ message.content + (eos_token if message.role == 'assistant' else '') }}"
    "{%- endfor %}"
)

_NAMED: Mapping[str, _Named] = {
    "alpaca": _alpaca(""),
    "alpaca_newline": _alpaca("\\n"),  # Alpaca-LoRA's (templates/alpaca.json)
    "chatml": _Named(_CHATML, ("<|im_start|>", "<|im_end|>")),
    "llama2": _Named(_LLAMA2, ("bos", "eos")),
    "llama3": _Named(_LLAMA3, ("bos", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")),
    "plain": _Named(_PLAIN, ("eos",)),
}


def alpaca_prompt(instruction: str, input: str = "") -> str:
    """What Stanford Alpaca's template asks with, to the letter."""
    turns = _with_input_sections((Turn("user", instruction, input),))
    return ChatTemplate(_NAMED["alpaca"].jinja, {"eos_token": ""}, trusted=True).render(_messages(turns))


_STAND_IN = re.compile("\ue000([0-9]+)\ue001")
_KEPT_SHAPES = 256
_Shape: TypeAlias = tuple[tuple[str, str, bool], ...]
"""Of each turn its role, a stand-in for its content, and whether it is an answer to learn."""


class Layout:
    """A template for one tokenizer.

    Args:
        template: `auto` is the model's own, if it has one, else `alpaca`.
        tokenizer: Gives the ids.

    Raises:
        UserError: the template needs control tokens that the tokenizer lacks, or the model's own is asked for and
            there is none.
    """

    def __init__(self, template: Template | str, tokenizer: Tokenizer) -> None:
        if template == "auto":
            template = "alpaca" if tokenizer.chat_template is None else "model"
        self.name = template
        """The template that was chosen; never `auto`."""
        self._tokenizer = tokenizer
        self._encode = PartEncoder(tokenizer)
        self._named = None if template == "model" else _NAMED[template]
        self._skeleton = functools.lru_cache(_KEPT_SHAPES)(self._laid_out)
        if self._named is None:
            if tokenizer.chat_template is None:
                raise UserError("data.template: the model has no chat template of its own; choose alpaca or another")
            self.chat_template = tokenizer.chat_template
            """Jinja source of the template, to be saved with the model."""
            return
        tokens = {**tokenizer.special_tokens, "bos": tokenizer.bos_id, "eos": tokenizer.eos_id}
        missing = [name for name in self._named.tokens if name not in tokens]
        if missing:
            raise UserError(
                f"data.template: {template} needs the control tokens {', '.join(missing)}, which the model's tokenizer "
                "lacks; choose alpaca, or a model that has them"
            )
        self.chat_template = self._named.jinja

    @property
    def writes_reasoning(self) -> bool:
        """Whether it lays out what an assistant thinks before it speaks."""
        return self._named is None and REASONING in self.chat_template

    @functools.cached_property
    def end_id(self) -> int:
        """The control token that ends an answer, as the template lays one out; EOS where it writes none."""
        probe, eos = "answer", self._tokenizer.eos_id
        asked = Turn("user", "question")
        for opening in ((), (Turn("system", "system"),)):
            conversation = (*opening, asked, Turn("assistant", probe))
            try:
                parts = self._learned_parts(conversation, "")
            except BadRecordError:  # some models refuse a conversation with a system turn, or without one
                continue
            learned = [part.content for part in parts if part.is_learned]
            after = itertools.dropwhile(lambda part: isinstance(part, int) or probe not in part, learned)
            return next((part for part in after if isinstance(part, int)), eos)
        return eos

    def encode(self, conversation: Conversation | str, where: str) -> Encoded:
        """Ids of a conversation with EOS or the like after each answer, and which of them are answers; of a text
        between BOS and EOS, all but BOS.

        Args:
            where: What leads to the record, for errors.

        Raises:
            BadRecordError: the model's own template does not lay the conversation out as it would have been asked.
        """
        if isinstance(conversation, str):
            return self._encode([Part(conversation, True), Part(self._tokenizer.eos_id, True)])
        return self._encode(self._learned_parts(conversation, where))

    def prompt_ids(self, conversation: Sequence[Turn]) -> list[int]:
        """Ids to ask a model with: those of a conversation that ends with a user's turn, up to where the answer
        begins."""
        if self._named is None:
            return encode_chat(self._tokenizer, self._own_messages(tuple(conversation)))
        return self._encode(self._parts(self._named, tuple(conversation), asks=True))[0]

    def _learned_parts(self, conversation: Conversation, where: str) -> list[Part]:
        """The parts of a conversation with its answers; see `encode`."""
        if self._named is not None:
            return self._parts(self._named, conversation, asks=False)
        answers = [_is_answer(turn) for turn in conversation]
        return chat_parts(self._tokenizer, self._own_messages(conversation), answers, where)

    def _parts(self, named: _Named, conversation: Conversation, *, asks: bool) -> list[Part]:
        """The parts of a conversation. The template sees stand-ins for what is said, so that no text becomes a control
        token, and conversations of one shape are laid out once."""
        turns = named.with_input(conversation)
        said = [turn.content.strip() for turn in turns]
        stand_ins = [_around(turn.content, f"\ue000{number}\ue001") for number, turn in enumerate(turns)]
        shape = tuple((turn.role, text, _is_answer(turn)) for turn, text in zip(turns, stand_ins, strict=True))

        def filled(part: Part) -> Part:
            if isinstance(part.content, int):
                return part
            return part._replace(content=_STAND_IN.sub(lambda match: said[int(match[1])], part.content))

        return [filled(part) for part in self._skeleton(shape, asks)]

    def _laid_out(self, shape: _Shape, asks: bool) -> list[Part]:
        messages = [{"role": role, "content": text} for role, text, _ in shape]
        answers = [is_answer for _, _, is_answer in shape]
        return laid_out_parts(self._tokenizer, self.chat_template, messages, answers, add_generation_prompt=asks)

    def _own_messages(self, conversation: Conversation) -> list[dict[str, str]]:
        """What the model's own template is given."""
        joined = _joined(conversation)
        thought = [{REASONING: turn.reasoning} if self.writes_reasoning and turn.reasoning else {} for turn in joined]
        return [message | more for message, more in zip(_messages(joined), thought, strict=True)]


def _is_answer(turn: Turn) -> bool:
    """An answer to learn."""
    return turn.role == "assistant" and turn.is_learned


def _around(text: str, stand_in: str) -> str:
    """A stand-in with the white space around a text, which a template may trim."""
    stripped = text.strip()
    before, _, after = text.partition(stripped) if stripped else (text, "", "")
    return f"{before}{stand_in}{after}"


def _messages(conversation: Conversation) -> list[dict[str, str]]:
    return [{"role": turn.role, "content": turn.content} for turn in conversation]
