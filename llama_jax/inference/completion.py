"""Completion of text: the one place where prompts become answers, over one engine.

The commands `generate` and `evaluate`, the sample answers of a run and the Python API all call `complete`."""

import operator
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from llama_jax.core.arrays import PyTree
from llama_jax.core.errors import CannotGoOnError
from llama_jax.core.mesh import platform
from llama_jax.core.placing import padded_rows
from llama_jax.core.sharding import bytes_on_a_device, size_of
from llama_jax.data.chat import encode_chat
from llama_jax.data.tokenizers import Tokenizer
from llama_jax.inference.config import SamplingConfig
from llama_jax.inference.engine import Engine, Request
from llama_jax.inference.layout import decoding_params
from llama_jax.inference.text import AnswerText
from llama_jax.model.cache import empty_cache
from llama_jax.model.llama import LanguageModel

Prompts = TypeVar("Prompts", str, list[str])

MOST_ROWS = {"cpu": 16, "gpu": 64, "tpu": 64}
"""Rows that a device decodes at a time, where nobody says: more of them would win little."""
LEAST_ROOM = 2**28
"""Bytes that caches may take on a device, however small the model is."""
SHORTEST_SLOT = 128
"""Tokens; slots have this length, twice that and so on, so that few programs are compiled."""


@dataclass(eq=False)
class Writer:
    """A model ready to write. Made by `writer`."""

    model: LanguageModel
    layers: PyTree
    """Parameters in the list layout."""
    tokenizer: Tokenizer
    stop_ids: tuple[int, ...]
    """Tokens that end an answer."""
    _engine: Engine | None = field(default=None, repr=False)
    _compiled_before: int = 0

    def engine(self, rows: int, tokens: int) -> Engine:
        """An engine of so many slots that hold that many tokens, or as many as the model's context has; the one of the
        call before, where it will do."""
        length = SHORTEST_SLOT
        while length < tokens:
            length *= 2
        length, slots = min(length, self.model.config.context_length), padded_rows(rows)
        if self._engine is None or self._engine.length < length or self._engine.slots != slots:
            self.release()  # before there are others: both might not fit
            self._engine = Engine(self.model, self.layers, slots=slots, length=length, row_counts=(slots,))
        return self._engine

    def release(self) -> None:
        """Give up the caches."""
        self._compiled_before = self.compilations
        self._engine = None

    @property
    def compilations(self) -> int:
        """Programs compiled so far for its engines."""
        return self._compiled_before + (self._engine.compilations if self._engine else 0)

    def most_rows(self, tokens: int) -> int:
        """Rows of so many tokens that are answered at a time: enough to use the machine well, and no more than have
        their caches in as much memory as the weights take."""
        config, dtype, parts = self.model.config, jnp.dtype(self.model.compute.dtype), size_of("batch")
        shapes = jax.eval_shape(lambda: empty_cache(config, parts, tokens, dtype))
        of_row = bytes_on_a_device(shapes) // (parts * size_of("kv_heads"))
        room = max(bytes_on_a_device(self.layers), LEAST_ROOM) // of_row
        return min(max(room, 1), MOST_ROWS[platform()]) * parts


def writer(
    model: LanguageModel,
    params: PyTree,
    tokenizer: Tokenizer,
    stop_ids: tuple[int, ...] | None = None,
    *,
    consume: bool = False,
) -> Writer:
    """Get a model ready to write; makes a second copy of its parameters.

    Args:
        params: scanned layout, on the mesh in use.
        stop_ids: tokens that end an answer; None: those of the tokenizer.
        consume: give `params` up, piece by piece, so that there never are two copies.
    """
    stop_ids = tokenizer.stop_ids if stop_ids is None else stop_ids
    return Writer(model, decoding_params(model, params, consume=consume), tokenizer, stop_ids)


class Completion(NamedTuple):
    """What a model writes after one prompt."""

    ids: list[int]
    """The new tokens, with the one that ended it."""
    text: str
    """What they add to the text of the prompt, up to the first stop text."""
    finish: Literal["stop", "length", "error"]
    """Why it ended: see `NewToken.finish`; `stop` also at a stop text."""


def completions(
    by: Writer,
    requests: Sequence[Request],
    *,
    stops: Sequence[str] = (),
    rows: int | None = None,
    stream: Callable[[int, int], None] | None = None,
) -> Iterator[tuple[int, Completion]]:
    """(number of the request, what the model writes), each as soon as it has ended, on the mesh in use; every process
    goes through them alike.

    Args:
        stops: an answer ends where the first of these texts begins.
        rows: answers written at a time; None: as many as make sense.
        stream: called with the number of the request and each new token of it.

    Raises:
        UserError: a request can never be answered.
    """
    if not requests:
        return
    tokens = max(len(request.prompt) + request.sampling.max_new_tokens for request in requests)
    engine = by.engine(rows or min(len(requests), by.most_rows(tokens)), tokens)
    ids: list[list[int]] = [[] for _ in requests]
    texts = [AnswerText(by.tokenizer, request.prompt, stops) for request in requests]
    pieces: list[list[str]] = [[] for _ in requests]
    handles: dict[int, int] = {}
    try:
        for number, request in enumerate(requests):
            handles[engine.submit(request)] = number
        while handles:
            for handle, token, finish, *_ in engine.step():
                if handle not in handles:
                    continue
                number = handles[handle]
                if finish != "error":
                    ids[number].append(token)
                    pieces[number].append(texts[number].push(token))
                    if stream is not None:
                        stream(number, token)
                if texts[number].stopped and finish is None:
                    engine.cancel(handle)
                    finish = "stop"
                if finish is not None:
                    del handles[handle]
                    text = "".join([*pieces[number], texts[number].finish()])
                    yield number, Completion(ids[number], text, finish)
    finally:
        for handle in handles:
            engine.cancel(handle)


def complete(
    by: Writer,
    prompts: Sequence[Sequence[int]],
    sampling: SamplingConfig,
    *,
    seed: int = 0,
    stream: Callable[[int, int], None] | None = None,
    adapter_ids: Sequence[int] | None = None,
) -> list[Completion]:
    """Continue prompts on the mesh in use; every process calls this alike.

    Args:
        prompts: token ids, at least one each (`encode_prompt`).
        seed: of the random choices.
        stream: called with the number of the prompt and each new token of its answer.
        adapter_ids: the number of the adapter of each prompt, of a model that was opened with several.

    Raises:
        UserError: a prompt is empty, or does not fit into the model's context with the tokens asked for.
        CannotGoOnError: the model's logits are not numbers.
    """
    adapters = [None] * len(prompts) if adapter_ids is None else adapter_ids
    requests = [
        Request(prompt, sampling, by.stop_ids, seed, number, adapter=adapter)
        for number, (prompt, adapter) in enumerate(zip(prompts, adapters, strict=True))
    ]
    found = dict(completions(by, requests, stream=stream))
    return [usable(found[number]) for number in range(len(prompts))]


def usable(completion: Completion) -> Completion:
    """The same.

    Raises:
        CannotGoOnError: it ended because the model's logits are not numbers.
    """
    if completion.finish == "error":
        raise CannotGoOnError("the model's logits are not numbers; its weights are broken, or its type is too narrow")
    return completion


class _Last:
    """What a model wrote with last, as long as the parameters that it was made from live."""

    def __init__(self, params: PyTree, by: Writer) -> None:
        self.by: Writer | None = by
        self._made_from = [weakref.ref(leaf, self._forget) for leaf in jax.tree.leaves(params)]

    def _forget(self, _: Any) -> None:
        self.by = None

    def is_of(self, params: PyTree) -> bool:
        """Whether it was made from the very arrays of this tree, and is there still."""
        leaves = jax.tree.leaves(params)
        made_from = (known() for known in self._made_from)
        same = len(leaves) == len(self._made_from) and all(map(operator.is_, made_from, leaves))
        return same and self.by is not None


_LAST: "weakref.WeakKeyDictionary[LanguageModel, _Last]" = weakref.WeakKeyDictionary()


def _writer_again(model: LanguageModel, params: PyTree, tokenizer: Tokenizer) -> Writer:
    """`writer`, which for the parameters of the last call has nothing to do."""
    last = _LAST.get(model)
    if last is None or not last.is_of(params):
        last = _LAST[model] = _Last(params, writer(model, params, tokenizer))
    by = last.by
    assert by is not None
    by.tokenizer, by.stop_ids = tokenizer, tokenizer.stop_ids
    return by


def encode_prompt(tokenizer: Tokenizer, prompt: str, *, chat: bool = False, special: bool = True) -> list[int]:
    """Ids to continue.

    Args:
        chat: the prompt is what a user says, plain text whatever it holds; the model's chat template is put around it.
        special: control tokens written in a prompt that is not a chat, and so is wholly the caller's, are read as such.

    Raises:
        UserError: `chat`, and the model has no chat template.
    """
    if chat:
        return encode_chat(tokenizer, [{"role": "user", "content": prompt}])
    ids = tokenizer.encode(prompt, special=special)
    opened = ids[:1] == [tokenizer.bos_id]
    return [tokenizer.bos_id, *ids] if not ids or (tokenizer.adds_bos and not opened) else ids


def generate(
    model: LanguageModel,
    params: PyTree,
    tokenizer: Tokenizer,
    prompts: Prompts,
    *,
    chat: bool = False,
    seed: int = 0,
    adapter_ids: Sequence[int] | None = None,
    **sampling: Any,
) -> Prompts:
    """Continue one prompt, or a list of them side by side.

    Args:
        model: with `params` and `tokenizer`, as `llama_jax.load` gives them.
        chat: each prompt is what a user says, and the model's chat template is put around it; else it is the model's
            input as it stands, in which control tokens such as `<|im_start|>` are read as such.
        seed: of the random choices.
        adapter_ids: the number of the adapter of each prompt, of a model that was loaded with several.
        sampling: fields of `SamplingConfig`: `max_new_tokens`, `temperature`, `top_k`, `top_p`, ….

    Returns:
        What follows each prompt, without the prompt: a text for a text, a list for a list.

    Raises:
        UserError: a setting is out of range, or prompt and answer exceed the model's context.
        CannotGoOnError: the model's logits are not numbers.
    """
    settings = SamplingConfig(**sampling)
    texts = [prompts] if isinstance(prompts, str) else prompts
    ids = [encode_prompt(tokenizer, text, chat=chat) for text in texts]
    with jax.set_mesh(jax.tree.leaves(params)[0].sharding.mesh):
        by = _writer_again(model, params, tokenizer)
        found = complete(by, ids, settings, seed=seed, adapter_ids=adapter_ids)
        by.release()
    answers = [completion.text for completion in found]
    return answers[0] if isinstance(prompts, str) else answers  # pyright: ignore[reportReturnType]
