"""The searches for what repeats that the settings ask for."""

from dataclasses import asdict
from typing import Any

from llama_jax.data.preparation.config import PrepareConfig
from llama_jax.data.preparation.duplicates import ExactDuplicates
from llama_jax.data.preparation.job import Search
from llama_jax.data.preparation.near.duplicates import NearDuplicates
from llama_jax.data.preparation.near.minhash import MinHash
from llama_jax.data.preparation.near.paragraphs import RepeatedParagraphs


def searches_of(config: PrepareConfig) -> tuple[Search, ...]:
    """In order, from the whole of documents to parts of those that are left."""
    searches: list[Search] = []
    if config.deduplicate:
        searches.append(ExactDuplicates())
    if (near := config.near_duplicates).threshold is not None:
        searches.append(NearDuplicates(MinHash(near.shingle, near.bands, near.rows), near.threshold))
    if config.paragraphs != "none":
        searches.append(RepeatedParagraphs(across_shards=config.paragraphs == "source"))
    return tuple(searches)


def search_settings(config: PrepareConfig) -> dict[str, Any]:
    """What decides what is found, of the searches that the settings ask for."""
    settings: dict[str, Any] = {}
    if config.near_duplicates.threshold is not None:
        settings["near_duplicates"] = asdict(config.near_duplicates)
    if config.paragraphs != "none":
        settings["paragraphs"] = config.paragraphs
    return settings
