"""From documents to rows of tokens: tokenizers, sources, packing, the loader."""
