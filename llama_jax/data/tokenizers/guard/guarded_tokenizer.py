"""A tokenizer of Hugging Face's library in a process of its own, which is killed when a text takes too long or becomes
too much."""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from llama_jax.core.errors import UserError
from llama_jax.core.processes.guarded import GuardedProcess, Request

_PROGRAM = Path(__file__).with_name("worker.py")
_PARTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")


class GuardedTokenizer:
    """In place of the library's tokenizer for a file that is not bounded (see `parts`). What does not touch a text is
    answered in this process, by the library's own without the parts that do.

    Args:
        content: A `tokenizer.json`, parsed.
        seconds: For a text of no length; each million characters has twenty more.
        memory: Bytes of address space for a text and a file of no length.

    Raises:
        UserError: the file takes too long to load, or too much memory, or the library refuses it.
    """

    def __init__(self, content: Mapping[str, Any], *, seconds: float = 10.0, memory: int = 2**30) -> None:
        import tokenizers  # when first used: commands that only print help start without it

        self._content, self._seconds, self._memory = content, seconds, memory
        self._harmless = tokenizers.Tokenizer.from_str(json.dumps({**content, **dict.fromkeys(_PARTS)}))
        self.encode_special_tokens = False
        """Whether names of control tokens in a text are ordinary text."""
        self.encode("", add_special_tokens=False)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._harmless, name)

    def add_special_tokens(self, tokens: list[Any]) -> None:
        """Make control tokens of these names."""
        self._harmless.add_special_tokens(tokens)
        self.__dict__.pop("_process", None)

    def encode(self, text: str, *, add_special_tokens: bool) -> SimpleNamespace:
        """`ids` of a text.

        Raises:
            UserError: it takes too long, or too much memory, or the library refuses it.
        """
        assert not add_special_tokens
        return SimpleNamespace(ids=self._ask("encode", [text, self.encode_special_tokens], len(text)))

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """The text of ids; raises as `encode` does."""
        assert skip_special_tokens
        return self._ask("decode", list(ids), 16 * len(ids))

    @property
    def decoder(self) -> SimpleNamespace:
        """With a method `decode` that gives the text of names of tokens; raises as `encode` does."""
        return SimpleNamespace(decode=lambda names: self._ask("decode_names", names, sum(map(len, names))))

    @cached_property
    def _process(self) -> GuardedProcess:
        """Made when needed, and anew where tokens were added since."""
        added = json.loads(self._harmless.to_str())["added_tokens"]
        whole = {**self._content, "added_tokens": added, "truncation": None, "padding": None}
        text = json.dumps(whole)
        return GuardedProcess(_PROGRAM, self._request("load", text, 4 * len(text)))

    def _request(self, call: str, value: Any, size: int) -> Request:
        seconds = self._seconds + size * 20e-6
        return Request({"call": call, "value": value}, seconds, self._memory + 256 * size, 2**20 + 64 * size)

    def _ask(self, call: str, value: Any, size: int) -> Any:
        """What the process gives for a text of about so many characters."""
        request = self._request(call, value, size)
        wrong = "tokenizer.json: its normaliser, patterns or decoder"
        try:
            answer = self._process.ask(request)
        except TimeoutError:
            raise UserError(f"{wrong} take more than {request.seconds:.0f} s for {size:,} characters") from None
        except EOFError:
            raise UserError(f"{wrong} ask for too much memory or time for {size:,} characters") from None
        if "error" in answer:
            what = f"{size:,} characters" if size else "it"
            raise UserError(f"tokenizer.json: the tokenizers library refuses {what}: {answer['error']}")
        return answer["found"]
