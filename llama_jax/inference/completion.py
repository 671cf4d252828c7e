"""Completion of text: the one place where prompts become answers, whatever decodes behind it.

The commands `generate` and `evaluate`, the sample answers of a run and the Python API all call `complete`."""

import operator
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import jax

from llama_jax.core.arrays import PyTree
from llama_jax.data.chat import encode_chat
from llama_jax.data.tokenizers import Tokenizer
from llama_jax.inference import decode
from llama_jax.inference.config import SamplingConfig
from llama_jax.model.llama import LanguageModel

Prompts = TypeVar("Prompts", str, list[str])


@dataclass(frozen=True)
class Writer:
    """A model ready to write. Made by `writer`."""

    model: LanguageModel
    layers: PyTree
    """Parameters in the list layout."""
    tokenizer: Tokenizer
    stop_ids: tuple[int, ...]
    """Tokens that end an answer."""


class Completion(NamedTuple):
    """What a model writes after one prompt."""

    ids: list[int]
    """The new tokens, with the one that ended it."""
    text: str
    """What they add to the text of the prompt."""


def writer(
    model: LanguageModel, params: PyTree, tokenizer: Tokenizer, stop_ids: tuple[int, ...] | None = None
) -> Writer:
    """Get a model ready to write; makes a second copy of its parameters.

    Args:
        params: scanned layout, on the mesh in use.
        stop_ids: tokens that end an answer; None: those of the tokenizer.
    """
    stop_ids = tokenizer.stop_ids if stop_ids is None else stop_ids
    return Writer(model, decode.decoding_params(model, params), tokenizer, stop_ids)


def complete(
    by: Writer,
    prompts: Sequence[Sequence[int]],
    sampling: SamplingConfig,
    *,
    seed: int = 0,
    stream: Callable[[list[list[int]]], None] | None = None,
    adapter_ids: Sequence[int] | None = None,
) -> list[Completion]:
    """Continue prompts, all in one batch on the mesh in use; every process calls this alike.

    Args:
        prompts: token ids, at least one each (`encode_prompt`).
        seed: of the random choices.
        stream: called with the new tokens so far of each prompt, every few tokens.
        adapter_ids: the number of the adapter of each prompt, of a model that was opened with several.

    Raises:
        UserError: a prompt is empty, or does not fit into the model's context with the tokens asked for.
    """
    rules, decode_ids = decode.Rules(sampling, by.stop_ids), by.tokenizer.decode
    answers = decode.generate(by.model, by.layers, prompts, rules, seed=seed, stream=stream, adapter_ids=adapter_ids)
    return [
        # Decoded together, since the spelling of a token depends on the one before.
        Completion(ids, decode_ids([*prompt, *ids])[len(decode_ids(prompt)) :])
        for prompt, ids in zip(prompts, answers, strict=True)
    ]


class _Copied:
    """The parameters that a model wrote with last, in the list layout, as long as those they were made from live."""

    def __init__(self, params: PyTree, layers: PyTree) -> None:
        self.layers = layers
        self._made_from = [weakref.ref(leaf, self._forget) for leaf in jax.tree.leaves(params)]

    def _forget(self, _: Any) -> None:
        self.layers = None

    def is_of(self, params: PyTree) -> bool:
        """Whether they were made from the very arrays of this tree, and are there still."""
        leaves = jax.tree.leaves(params)
        made_from = (known() for known in self._made_from)
        same = len(leaves) == len(self._made_from) and all(map(operator.is_, made_from, leaves))
        return same and self.layers is not None


_COPIED: "weakref.WeakKeyDictionary[LanguageModel, _Copied]" = weakref.WeakKeyDictionary()


def _writer_again(model: LanguageModel, params: PyTree, tokenizer: Tokenizer) -> Writer:
    """`writer`, which for the parameters of the last call has nothing to do."""
    copied = _COPIED.get(model)
    if copied is None or not copied.is_of(params):
        copied = _COPIED[model] = _Copied(params, decode.decoding_params(model, params))
    return Writer(model, copied.layers, tokenizer, tokenizer.stop_ids)


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
    """Continue one prompt, or a list of them in one batch.

    Args:
        model: with `params` and `tokenizer`, as `llama_jax.load` gives them.
        chat: each prompt is what a user says, and the model's chat template is put around it; else it is the model's
            input as it stands, in which control tokens such as `<|im_start|>` are read as such.
        seed: of the random choices.
        adapter_ids: the number of the adapter of each prompt, of a model that was loaded with several.
        sampling: fields of `SamplingConfig`: `max_new_tokens`, `temperature`, `top_k`, `top_p`.

    Returns:
        What follows each prompt, without the prompt: a text for a text, a list for a list.

    Raises:
        UserError: a setting is out of range, or prompt and answer exceed the model's context.
    """
    settings = SamplingConfig(**sampling)
    texts = [prompts] if isinstance(prompts, str) else prompts
    ids = [encode_prompt(tokenizer, text, chat=chat) for text in texts]
    with jax.set_mesh(jax.tree.leaves(params)[0].sharding.mesh):
        by = _writer_again(model, params, tokenizer)
        found = complete(by, ids, settings, seed=seed, adapter_ids=adapter_ids)
    answers = [completion.text for completion in found]
    return answers[0] if isinstance(prompts, str) else answers  # pyright: ignore[reportReturnType]
