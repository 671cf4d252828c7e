"""Train a LLaMA-style sentencepiece tokenizer: `python -m llama_jax.tokenizer`."""

if __name__ == "__main__":
    from llama_jax.__main__ import main

    main("tokenizer")


from etils import epath

from llama_jax.config import TokenizerConfig
from llama_jax.core.errors import UserError
from llama_jax.data.loader import text_bytes
from llama_jax.data.sources import open_source
from llama_jax.data.tokenizers import train_tokenizer


def tokenizer(config: TokenizerConfig) -> None:
    """Run the command."""
    output = epath.Path(config.output)
    if output.exists() and not config.overwrite:
        raise UserError(f"--output {output}: exists; name another file, or add --overwrite")
    documents = open_source(config.data)
    trained = train_tokenizer((documents[index] for index in range(len(documents))), config.vocab_size)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_bytes(trained.to_bytes())
    size = text_bytes(documents)
    count = sum(len(trained.encode(documents[index])) for index in range(len(documents)))
    print(
        f"{output}: {trained.vocab_size} pieces from {len(documents):,} documents, {size:,} bytes; "
        f"{size / count:.2f} bytes a token"
    )
