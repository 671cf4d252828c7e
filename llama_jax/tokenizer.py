"""Train a LLaMA-style sentencepiece tokenizer: `python -m llama_jax.tokenizer`."""

if __name__ == "__main__":
    from llama_jax.__main__ import main

    main("tokenizer")

import functools
from collections import Counter

from etils import epath

from llama_jax.core.errors import UserError
from llama_jax.core.files import write_whole
from llama_jax.data.config import TokenizerConfig
from llama_jax.data.rows.mixture import open_mixture
from llama_jax.data.sources.bad_records import counted
from llama_jax.data.tokenizers import train_tokenizer


def tokenizer(config: TokenizerConfig) -> None:
    """Write a sentencepiece model that is trained on the text, and print how well it compresses it."""
    output = epath.Path(config.output)
    if output.exists() and not config.overwrite:
        raise UserError(f"--output {output}: exists; name another file, or add --overwrite")
    mixture = open_mixture(config.data)
    say = functools.partial(print, flush=True)
    trained = train_tokenizer(mixture.texts(mixture.bad_records(config.data, say)), config.vocab_size)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_whole(output, trained.to_bytes())
    documents = size = tokens = 0
    bad_records = mixture.bad_records(config.data)
    for text in mixture.texts(bad_records):
        documents, size, tokens = documents + 1, size + len(text.encode()), tokens + len(trained.encode(text))
    left_out = counted(sum((bad.reasons for bad in bad_records), Counter()))
    print(
        f"{output}: {trained.vocab_size} pieces from {documents:,} documents, {size:,} bytes; "
        f"{size / tokens:.2f} bytes a token" + (f"; bad records left out: {left_out}" if left_out else "")
    )
