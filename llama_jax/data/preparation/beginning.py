"""What is settled before the first pass: the tokenizer, and where shards begin."""

from typing import Any

from etils import epath

from llama_jax.data.preparation.config import PrepareConfig
from llama_jax.data.preparation.resuming import Plan, plan_to_resume
from llama_jax.data.preparation.shards import sampled_texts, shard_bounds
from llama_jax.data.sources.documents import Documents
from llama_jax.data.tokenizers import Tokenizer, load_tokenizer, train_tokenizer
from llama_jax.data.tokenizers.loading import MODEL_FILES

_TRAINING_BYTES = 2**25  # of text: the trainer of tokenizers holds it in memory several times over


def settled(
    config: PrepareConfig, directory: epath.Path, settings: dict[str, Any], documents: Documents
) -> tuple[Plan, Tokenizer]:
    """The plan of work that was begun in the directory, or a new one, and its tokenizer: the one named, or one trained
    on the text, which is kept in the directory.

    Raises:
        UserError: another command began the work, or the tokenizer cannot be used.
    """
    plan = plan_to_resume(directory, config, settings, documents)
    if config.data.tokenizer is not None:
        tokenizer = load_tokenizer(config.data.tokenizer)
    elif plan is not None and any((directory / name).exists() for name in MODEL_FILES):
        tokenizer = load_tokenizer(directory)
    else:
        print(f"training a tokenizer of {config.vocab_size} pieces", flush=True)
        tokenizer = train_tokenizer(sampled_texts(documents, _TRAINING_BYTES), config.vocab_size)
    if plan is None:
        bounds = shard_bounds(documents, config.shard_megabytes)
        plan = Plan(documents.identity(), tokenizer.fingerprint, settings, bounds)
    return plan, tokenizer
