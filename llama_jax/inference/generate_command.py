"""Continuing the prompts of the command `generate`: each by each adapter, the only answer printed as it comes."""

import sys
import time
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from etils import epath

from llama_jax.checkpoints.opening import OpenModel
from llama_jax.core.errors import UserError
from llama_jax.core.processes.distributed import is_main_process
from llama_jax.data.tokenizers import Tokenizer
from llama_jax.data.tokenizers.stream_decoding import StreamDecoder
from llama_jax.inference.completion import complete, encode_prompt, writer
from llama_jax.inference.config import GenerateConfig, SamplingConfig


def read_prompts(config: GenerateConfig) -> list[str]:
    """The prompts that the settings name.

    Raises:
        UserError: there is no such file, it is not text, or it holds none.
    """
    if config.prompts is None:
        return [config.prompt]
    file = epath.Path(config.prompts)
    if not file.exists():
        raise UserError(f"--prompts {file}: no such file")
    if file.is_dir():
        raise UserError(f"--prompts {file}: is a directory; name a file with a prompt a line")
    try:
        text = file.read_bytes().decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise UserError(f"--prompts {file}: not UTF-8 at byte {error.start}; save it as UTF-8") from None
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise UserError(f"--prompts {file}: has no prompt; write one a line")
    return lines


def continue_prompts(config: GenerateConfig, opened: OpenModel, prompts: Sequence[str]) -> tuple[dict[str, Any], float]:
    """Continue all prompts side by side, on the mesh in use. A single text is printed as it comes, unless JSON is asked
    for; several are printed in the end.

    Returns:
        What the command writes as JSON (texts with their prompts, unless these are chats), and the seconds it took,
        compilation included.
    """
    tokenizer, names = opened.tokenizer, opened.adapters
    sampling = SamplingConfig(**{field.name: getattr(config, field.name) for field in fields(SamplingConfig)})
    ids = [encode_prompt(tokenizer, prompt, chat=config.chat, special=config.special_tokens) for prompt in prompts]
    adapter_ids = None
    if len(names) > 1:  # each prompt by each adapter, side by side
        ids = [prompt for prompt in ids for _ in names]
        adapter_ids = list(range(len(names))) * len(prompts)
    by = writer(opened.model, opened.params, tokenizer, consume=True)
    shown = [[] if config.chat else prompt for prompt in ids]
    printer = _Printer(tokenizer, shown[0]) if len(ids) == 1 and not config.json else None
    started = time.perf_counter()
    answers = complete(by, ids, sampling, seed=config.seed, stream=printer, adapter_ids=adapter_ids)
    seconds = time.perf_counter() - started
    # Decoded together, since a token's spelling depends on the one before.
    texts = [tokenizer.decode([*start, *answer.ids]) for start, answer in zip(shown, answers, strict=True)]
    adapters = list(names) * (len(texts) // max(1, len(names)))
    if printer is not None:
        printer.finish()
    elif not config.json:
        titles = [f"[{name}]\n" for name in adapters] if adapter_ids else [""] * len(texts)
        _print("\n\n".join(title + text for title, text in zip(titles, texts, strict=True)) + "\n")
    tokens = sum(len(answer.ids) for answer in answers)
    result = {"text": texts[0], "texts": texts, "tokens": tokens, "model": opened.source}
    return result | ({"adapters": adapters} if adapters else {}), seconds


class _Printer:
    """Prints the only answer as it comes, the prompt before it, and never half a character."""

    def __init__(self, tokenizer: Tokenizer, prompt: list[int]) -> None:
        self._decoder = StreamDecoder(tokenizer)
        self._push(prompt)

    def __call__(self, _: int, token: int) -> None:
        self._push([token])

    def finish(self) -> None:
        _print(self._decoder.finish() + "\n")

    def _push(self, ids: list[int]) -> None:
        _print("".join(map(self._decoder.push, ids)))


def _print(text: str) -> None:
    if is_main_process():
        sys.stdout.write(text)
        sys.stdout.flush()
