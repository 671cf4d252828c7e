"""From text to shards of token ids: cleaned, tokenised, once."""
