"""Continue a prompt: `python -m llama_jax.generate`."""

if __name__ == "__main__":
    from llama_jax.__main__ import main

    main("generate")

import json
import sys
import time

import jax
from etils import epath

from llama_jax.checkpoints.opening import find_model, open_model
from llama_jax.config import GenerateConfig
from llama_jax.core.distributed import is_main_process, start_up
from llama_jax.core.errors import UserError
from llama_jax.core.mesh import make_mesh
from llama_jax.data.tokenizers import Tokenizer
from llama_jax.data.tokenizers.stream_decoding import StreamDecoder
from llama_jax.inference.config import SamplingConfig
from llama_jax.inference.decode import decoding_params
from llama_jax.inference.decode import generate as decode
from llama_jax.inference.text import encode_prompt
from llama_jax.model.config import ComputeConfig


def generate(config: GenerateConfig) -> None:
    """Run the command."""

    def say(text: str) -> None:
        if is_main_process():
            print(text, file=sys.stderr, flush=True)

    who = start_up(config.distributed)
    prompts = _prompts(config)
    sampling = SamplingConfig(config.max_new_tokens, config.temperature, config.top_k, config.top_p)
    mesh = make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        path = find_model(config.model, say, config.adapters)
        compute = ComputeConfig(dtype=config.model_dtype)
        opened = open_model(
            path, compute, mesh, step=config.step, tokenizer=config.tokenizer, say=say, adapters=config.adapters
        )
        tokenizer = opened.tokenizer
        ids = [encode_prompt(tokenizer, prompt, chat=config.chat, special=config.special_tokens) for prompt in prompts]
        names, adapter_ids = opened.adapters, None
        if len(names) > 1:  # each prompt by each adapter, side by side
            ids = [prompt for prompt in ids for _ in names]
            adapter_ids = list(range(len(names))) * len(prompts)
        params = decoding_params(opened.model, opened.params)
        shown = [[] if config.chat else prompt for prompt in ids]
        show = _Printer(tokenizer, shown[0]) if len(ids) == 1 and not config.json else None
        started = time.perf_counter()
        stop_ids = tokenizer.stop_ids
        answers = decode(
            opened.model,
            params,
            ids,
            sampling,
            stop_ids=stop_ids,
            seed=config.seed,
            stream=show,
            adapter_ids=adapter_ids,
        )
        seconds = time.perf_counter() - started
        if show is not None:
            show.finish()
    if not is_main_process():
        return
    # Decoded together, since a token's spelling depends on the one before.
    texts = [tokenizer.decode(start + answer) for start, answer in zip(shown, answers, strict=True)]
    count = sum(map(len, answers))
    by = list(names) * (len(texts) // max(1, len(names)))
    if not config.json and show is None:
        titles = [f"[{name}]\n" for name in by] if adapter_ids else [""] * len(texts)
        print("\n\n".join(title + text for title, text in zip(titles, texts, strict=True)))
    say(f"{who}; {opened.source}: {count} tokens in {seconds:.1f} s, compilation included")
    if config.json:
        result = {"text": texts[0], "texts": texts, "tokens": count, "model": opened.source}
        print(json.dumps(result | ({"adapters": by} if by else {})))


def _prompts(config: GenerateConfig) -> list[str]:
    if config.prompts is None:
        return [config.prompt]
    file = epath.Path(config.prompts)
    if not file.exists():
        raise UserError(f"--prompts {file}: no such file")
    lines = [line for line in file.read_text().splitlines() if line.strip()]
    if not lines:
        raise UserError(f"--prompts {file}: has no prompt; write one a line")
    return lines


class _Printer:
    """Prints the only answer as it comes, the prompt before it, and never half a character."""

    def __init__(self, tokenizer: Tokenizer, prompt: list[int]) -> None:
        self._decoder = StreamDecoder(tokenizer)
        self._printed = 0
        self._print(prompt)

    def __call__(self, answers: list[list[int]]) -> None:
        self._print(answers[0][self._printed :])
        self._printed = len(answers[0])

    def finish(self) -> None:
        if is_main_process():
            print(self._decoder.finish(), flush=True)

    def _print(self, ids: list[int]) -> None:
        text = "".join(map(self._decoder.push, ids))
        if is_main_process():
            print(text, end="", flush=True)
