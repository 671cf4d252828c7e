"""Train a LLaMA-style sentencepiece tokenizer: `python -m llama_jax.tokenizer`."""

if __name__ == "__main__":
    from llama_jax.__main__ import main

    main("tokenizer")

from etils import epath

from llama_jax.core.errors import UserError
from llama_jax.core.files import write_whole
from llama_jax.data.config import TokenizerConfig
from llama_jax.data.rows.mixture import open_mixture
from llama_jax.data.tokenizers import train_tokenizer


def tokenizer(config: TokenizerConfig) -> None:
    """Write a sentencepiece model that is trained on the text, and print how well it compresses it."""
    output = epath.Path(config.output)
    if output.exists() and not config.overwrite:
        raise UserError(f"--output {output}: exists; name another file, or add --overwrite")
    mixture = open_mixture(config.data)
    trained = train_tokenizer(mixture.texts(), config.vocab_size)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_whole(output, trained.to_bytes())
    documents = size = tokens = 0
    for text in mixture.texts():
        documents, size, tokens = documents + 1, size + len(text.encode()), tokens + len(trained.encode(text))
    left_out = sum(len(source.documents) for source in mixture.sources) - documents
    print(
        f"{output}: {trained.vocab_size} pieces from {documents:,} documents, {size:,} bytes; "
        f"{size / tokens:.2f} bytes a token" + (f"; {left_out:,} bad records left out" if left_out else "")
    )
