"""Answers of the model to the same prompts again and again, to read how training changes them."""

import functools
from collections.abc import Callable, Sequence

from llama_jax.core.arrays import PyTree
from llama_jax.core.processes.distributed import is_main_process
from llama_jax.core.recording.metrics import JsonLines
from llama_jax.core.run_directory import RunDirectory
from llama_jax.data.instructions.loader import Prompt
from llama_jax.data.tokenizers import Tokenizer
from llama_jax.inference.completion import completions, writer
from llama_jax.inference.config import SamplingConfig
from llama_jax.inference.engine import Request
from llama_jax.model.llama import LanguageModel


class Samples:
    """Keeps `samples.jsonl`: for each step at which they are asked for, one object with the answers to all prompts.

    Prompts too long for the model's context are left out.
    """

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        prompts: Sequence[Prompt],
        max_new_tokens: int,
        stop_ids: tuple[int, ...],
    ) -> None:
        longest = model.config.context_length - max_new_tokens
        self.prompts = [prompt for prompt in prompts if len(prompt.ids) <= longest]
        self.answers: dict[int, list[str]] = {}
        """By step, of this process's life."""
        self._model, self._tokenizer, self._stop_ids = model, tokenizer, stop_ids
        self._sampling = SamplingConfig(max_new_tokens, 0.0)
        self._open_file: Callable[[], JsonLines] | None = None
        self._file: JsonLines | None = None

    def begin(self, run: RunDirectory, first: int) -> None:
        """Keep what a run from step `first` on gives; later lines of an earlier life are dropped, at the first answers
        of this one."""
        if self.prompts and is_main_process():
            self._open_file = functools.partial(JsonLines, run.samples, first)

    def take(self, step: int, params: PyTree) -> None:
        """Answer all prompts; every process calls this. `params` in the scanned layout."""
        if not self.prompts:
            return
        by = writer(self._model, params, self._tokenizer, self._stop_ids)
        # (A model whose logits are no longer numbers has said nothing; what to do about it is for others to say.)
        found = dict(completions(by, [Request(prompt.ids, self._sampling, self._stop_ids) for prompt in self.prompts]))
        texts = [self._tokenizer.decode(found[number].ids) for number in range(len(self.prompts))]
        self.answers[step] = texts
        if self._open_file is not None:
            self._file = self._file or self._open_file()
            samples = [
                {"prompt": prompt.text, "answer": text, "reference": prompt.reference}
                for prompt, text in zip(self.prompts, texts, strict=True)
            ]
            self._file.write({"step": step, "samples": samples})

    def close(self) -> None:
        """Write what is left."""
        if self._file is not None:
            self._file.close()

    def changes(self) -> list[str]:
        """Lines for people: each prompt with its first and its last answer of this process's life."""
        if not self.answers:
            return []
        steps = sorted(self.answers)
        lines = []
        for number, prompt in enumerate(self.prompts):
            lines.append(f"prompt:  {_one_line(prompt.text)}")
            for step in dict.fromkeys((steps[0], steps[-1])):
                when = "before" if step == 0 else f"step {step}"
                lines.append(f"  {when:>10}: {_one_line(self.answers[step][number])}")
            if prompt.reference is not None:
                lines.append(f"  {'reference':>10}: {_one_line(prompt.reference)}")
        return lines


def _one_line(text: str, most: int = 200) -> str:
    joined = " ".join(text.split())
    return joined if len(joined) <= most else f"{joined[: most - 1]}…"
