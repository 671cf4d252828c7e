"""Generation from text to text."""

from collections.abc import Sequence
from typing import TypeVar

import jax

from llama_jax.core.arrays import PyTree
from llama_jax.data.instructions.chat import encode_chat
from llama_jax.data.tokenizers import Tokenizer
from llama_jax.inference import decode
from llama_jax.inference.config import SamplingConfig
from llama_jax.model.llama import LanguageModel

Prompts = TypeVar("Prompts", str, list[str])


def encode_prompt(tokenizer: Tokenizer, prompt: str, *, chat: bool = False, special: bool = True) -> list[int]:
    """Ids to continue.

    Args:
        chat: the prompt is what a user says, plain text whatever it holds; the model's chat template is put around it.
        special: control tokens written in a prompt that is no chat, and so wholly the caller's, are read as such.

    Raises:
        UserError: `chat`, and the model has no chat template.
    """
    if chat:
        return encode_chat(tokenizer, [{"role": "user", "content": prompt}])
    ids = tokenizer.encode(prompt, special=special)
    opened = ids[:1] == [tokenizer.bos_id]
    return [tokenizer.bos_id, *ids] if not ids or (tokenizer.adds_bos and not opened) else ids


def answer_text(tokenizer: Tokenizer, prompt: Sequence[int], answer: Sequence[int]) -> str:
    """What the answer adds to the text of the prompt. Decoded together, since the spelling of a token depends on the
    one before."""
    return tokenizer.decode([*prompt, *answer])[len(tokenizer.decode(prompt)) :]


def generate(
    model: LanguageModel,
    params: PyTree,
    tokenizer: Tokenizer,
    prompts: Prompts,
    *,
    chat: bool = False,
    max_new_tokens: int = 128,
    temperature: float = 0.8,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    adapter_ids: Sequence[int] | None = None,
) -> Prompts:
    """Continue one prompt, or a list of them in one batch.

    Args:
        model: with `params` and `tokenizer`, as `llama_jax.load` gives them.
        chat: each prompt is what a user says, and the model's chat template is put around it; else it is the model's
            input as it stands, in which control tokens such as `<|im_start|>` are read as such.
        max_new_tokens: at the most; an end-of-sequence or end-of-turn token ends an answer earlier.
        temperature: divisor of the logits; 0 takes the most likely token.
        top_k: sample among this many; 0: all.
        top_p: sample among the most likely that together have this probability; 1: all.
        seed: of the random choices.
        adapter_ids: the number of the adapter of each prompt, of a model that was loaded with several.

    Returns:
        What follows each prompt, without the prompt: a text for a text, a list for a list.

    Raises:
        UserError: a setting is out of range, or prompt and answer exceed the model's context.
    """
    sampling = SamplingConfig(max_new_tokens, float(temperature), top_k, float(top_p))
    texts = [prompts] if isinstance(prompts, str) else prompts
    ids = [encode_prompt(tokenizer, text, chat=chat) for text in texts]
    with jax.set_mesh(jax.tree.leaves(params)[0].sharding.mesh):
        layers = decode.decoding_params(model, params)
        stop_ids = tokenizer.stop_ids
        answers = decode.generate(model, layers, ids, sampling, stop_ids=stop_ids, seed=seed, adapter_ids=adapter_ids)
    found = [answer_text(tokenizer, prompt, answer) for prompt, answer in zip(ids, answers, strict=True)]
    return found[0] if isinstance(prompts, str) else found  # pyright: ignore[reportReturnType]
