"""Conversations to text and control tokens: the templates of Alpaca, ChatML, Llama 2 and Llama 3, and the model's own.

Each is written twice, as a function that says what is learned and as Jinja source, which is saved with a fine-tuned
model so that it is asked as it was trained."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from llama_jax.core.errors import UserError
from llama_jax.data.config import Template
from llama_jax.data.instructions.chat import chat_parts, encode_chat
from llama_jax.data.instructions.part_encoding import Encoded, Part, PartEncoder
from llama_jax.data.instructions.records import Conversation, Turn
from llama_jax.data.tokenizers import Tokenizer

_HEADER = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
_HEADER_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
    "response that appropriately completes the request."
)

Tokens = Mapping[str, int]
Lay = Callable[[Conversation, Tokens], list[Part]]


@dataclass(frozen=True)
class _Named:
    """A template that comes with the package."""

    lay: Lay
    """The parts of a conversation. One that ends with a user's turn is laid out up to where the answer begins."""
    jinja: str
    tokens: tuple[str, ...]
    """Names of the control tokens it needs; `bos` and `eos` stand for the model's own."""
    end: str
    """The one that ends an answer."""


def _alpaca(turns: Conversation, tokens: Tokens, after_response: str = "") -> list[Part]:
    """Stanford Alpaca's (train.py, PROMPT_DICT): nothing between "### Response:" and the answer. A system turn takes
    the place of the first sentences; further turns follow without them."""
    header = _HEADER_WITH_INPUT if any(turn.input for turn in turns) else _HEADER
    if turns[0].role == "system":
        header, turns = turns[0].content, turns[1:]
    parts = [Part(f"{header}\n\n")]
    for number, turn in enumerate(turns):
        if turn.role == "assistant":
            parts += [Part(turn.content, turn.is_learned), Part(tokens["eos"], turn.is_learned)]
            continue
        given = f"\n\n### Input:\n{turn.input}" if turn.input else ""
        gap = "\n\n" if number else ""
        parts.append(Part(f"{gap}### Instruction:\n{turn.content}{given}\n\n### Response:{after_response}"))
    return parts


def alpaca_prompt(instruction: str, input: str = "") -> str:
    """How Stanford Alpaca's template asks for one answer, to the letter."""
    return "".join(str(part.content) for part in _alpaca((Turn("user", instruction, input),), {}))


def _alpaca_newline(turns: Conversation, tokens: Tokens) -> list[Part]:
    """Alpaca-LoRA's (templates/alpaca.json)."""
    return _alpaca(turns, tokens, "\n")


def _alpaca_jinja(after_response: str) -> str:
    return (
        "{%- if messages[0].role != 'system' %}{{ '" + _HEADER + "\\n\\n' }}{% endif %}"
        "{%- for message in messages %}"
        "{%- if message.role == 'system' %}{{ message.content + '\\n\\n' }}"
        "{%- elif message.role == 'user' %}"
        "{%- if loop.index0 > 1 or (loop.index0 == 1 and messages[0].role != 'system') %}{{ '\\n\\n' }}{% endif %}"
        "{{ '### Instruction:\\n' + message.content + '\\n\\n### Response:" + after_response + "' }}"
        "{%- else %}{{ message.content + eos_token }}{% endif %}"
        "{%- endfor %}"
    )


def _chatml(turns: Conversation, tokens: Tokens) -> list[Part]:
    start, end = tokens["<|im_start|>"], tokens["<|im_end|>"]
    parts: list[Part] = []
    for turn in turns:
        learned = turn.role == "assistant" and turn.is_learned
        parts += [Part(start), Part(f"{turn.role}\n"), Part(_joined(turn), learned), Part(end, learned), Part("\n")]
    return parts if turns[-1].role == "assistant" else [*parts, Part(start), Part("assistant\n")]


_CHATML_JINJA = (
    "{%- for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def _llama2(turns: Conversation, tokens: Tokens) -> list[Part]:
    """Meta's (llama/generation.py, chat_completion), but for the space that it writes between an answer and EOS: a
    model that learned it would have to write it before it can end."""
    system = ""
    if turns[0].role == "system":
        system, turns = f"<<SYS>>\n{turns[0].content}\n<</SYS>>\n\n", turns[1:]
    parts: list[Part] = []
    for turn in turns:
        if turn.role == "assistant":
            parts += [Part(f" {turn.content.strip()}", turn.is_learned), Part(tokens["eos"], turn.is_learned)]
        else:
            parts += [Part(tokens["bos"]), Part(f"[INST] {(system + _joined(turn)).strip()} [/INST]")]
            system = ""
    return parts


_LLAMA2_JINJA = (
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


def _llama3(turns: Conversation, tokens: Tokens) -> list[Part]:
    """Meta's (llama3/tokenizer.py, ChatFormat)."""
    start, end = tokens["<|start_header_id|>"], tokens["<|end_header_id|>"]
    parts = [Part(tokens["bos"])]
    for turn in turns:
        learned = turn.role == "assistant" and turn.is_learned
        parts += [Part(start), Part(turn.role), Part(end), Part("\n\n")]
        parts += [Part(_joined(turn).strip(), learned), Part(tokens["<|eot_id|>"], learned)]
    return parts if turns[-1].role == "assistant" else [*parts, Part(start), Part("assistant"), Part(end), Part("\n\n")]


_LLAMA3_JINJA = (
    "{{- bos_token }}"
    "{%- for message in messages %}"
    "{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + message.content | trim + '<|eot_id|>' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)


def _plain(turns: Conversation, tokens: Tokens) -> list[Part]:
    parts: list[Part] = []
    for turn in turns:
        learned = turn.role == "assistant" and turn.is_learned
        parts.append(Part(_joined(turn), learned))
        if turn.role == "assistant":
            parts.append(Part(tokens["eos"], learned))
    return parts


_PLAIN_JINJA = (
    "{%- for message in messages %}{{ message.content + (eos_token if message.role == 'assistant' else '') }}"
    "{%- endfor %}"
)

_CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")
_LLAMA3_TOKENS = ("bos", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
_NAMED: Mapping[str, _Named] = {
    "alpaca": _Named(_alpaca, _alpaca_jinja(""), ("eos",), "eos"),
    "alpaca_newline": _Named(_alpaca_newline, _alpaca_jinja("\\n"), ("eos",), "eos"),
    "chatml": _Named(_chatml, _CHATML_JINJA, _CHATML_TOKENS, "<|im_end|>"),
    "llama2": _Named(_llama2, _LLAMA2_JINJA, ("bos", "eos"), "eos"),
    "llama3": _Named(_llama3, _LLAMA3_JINJA, _LLAMA3_TOKENS, "<|eot_id|>"),
    "plain": _Named(_plain, _PLAIN_JINJA, ("eos",), "eos"),
}


class Layout:
    """A template for one tokenizer.

    Args:
        template: `auto` is the model's own, if it has one, else `alpaca`.
        tokenizer: Gives the ids.

    Raises:
        UserError: the template needs control tokens that the tokenizer has not, or the model's own is asked for and
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
        self._tokens = {**tokenizer.special_tokens, "bos": tokenizer.bos_id, "eos": tokenizer.eos_id}
        if self._named is None:
            if tokenizer.chat_template is None:
                raise UserError("data.template: the model has no chat template of its own; choose alpaca or another")
            self.chat_template = tokenizer.chat_template
            """Jinja source of the template, to be saved with the model."""
            self.end_id: int | None = None
            """The id that ends an answer; None where only the template knows."""
            return
        missing = [name for name in self._named.tokens if name not in self._tokens]
        if missing:
            raise UserError(
                f"data.template: {template} needs the control tokens {', '.join(missing)}, which the model's tokenizer "
                "has not; choose alpaca, or a model that has them"
            )
        self.chat_template, self.end_id = self._named.jinja, self._tokens[self._named.end]

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
        if self._named is not None:
            return self._encode(self._named.lay(conversation, self._tokens))
        answers = [turn.role == "assistant" and turn.is_learned for turn in conversation]
        return self._encode(chat_parts(self._tokenizer, _messages(conversation), answers, where))

    def prompt_ids(self, conversation: Sequence[Turn]) -> list[int]:
        """Ids to ask a model with: those of a conversation that ends with a user's turn, up to where the answer
        begins."""
        if self._named is None:
            return encode_chat(self._tokenizer, _messages(tuple(conversation)))
        return self._encode(self._named.lay(tuple(conversation), self._tokens))[0]


def _joined(turn: Turn) -> str:
    """What a user says as one text; as LLaMA-Factory joins Alpaca's two fields."""
    return f"{turn.content}\n{turn.input}" if turn.input else turn.content


def _messages(conversation: Conversation) -> list[dict[str, str]]:
    return [{"role": turn.role, "content": _joined(turn)} for turn in conversation]
