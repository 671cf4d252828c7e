"""What saving and restoring share: fingerprints of arrays, and orbax kept from logging what is said in one line."""

import logging
from collections.abc import Mapping
from typing import Any

import jax

from llama_jax.core.tree import fingerprints

# Orbax logs an error with a long traceback for every thread that a failed write passes through; the error itself
# reaches its caller, which says it in one line.
for _name in ("absl", "asyncio"):
    logging.getLogger(_name).addFilter(
        lambda record: record.levelno != logging.ERROR or "/orbax/" not in record.pathname + record.getMessage()
    )


def leaf_fingerprints(leaves: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """`core.tree.fingerprints` of leaves that need not all live on the same devices."""
    groups: dict[frozenset[Any], dict[str, jax.Array]] = {}
    for path, leaf in leaves.items():
        groups.setdefault(frozenset(leaf.sharding.device_set), {})[path] = leaf
    return {path: words for group in groups.values() for path, words in fingerprints(group).items()}
