"""Batches on a mesh: by field, whatever the class of the batch."""

import jax
import numpy as np
import pytest

from llama_jax.core import placing
from llama_jax.core.batches import Batch, TokenBatch, array, per_token, total
from llama_jax.core.config import MeshConfig
from llama_jax.core.errors import UserError
from llama_jax.core.mesh import make_mesh


class Odd(Batch):
    """A pair of rows in each, two normalisers, and a number for all."""

    ids: jax.Array = array(np.int32, "batch", 2, "length", is_read=True)
    advantages: jax.Array = per_token(np.float32)
    kept: jax.Array = array(np.float32, "batch")
    coefficient: jax.Array = array(np.float32)
    pairs: jax.Array = total("kept")
    mass: jax.Array = total("advantages")


def rows_of(kind: type[Batch], rows: int, length: int) -> dict[str, np.ndarray]:
    """Each array counted through, so that no two rows are alike."""
    shapes = {name: field for name, field in kind.arrays().items() if field.total_of is None}
    return {
        name: np.arange(np.prod(field.shape(rows, length)), dtype=field.dtype).reshape(field.shape(rows, length))
        for name, field in shapes.items()
    }


@pytest.mark.parametrize("kind", [TokenBatch, Odd])
@pytest.mark.parametrize("sizes", [(2, 2, 1, 2), (1, 2, 4), (8, 1)])
def test_a_batch_is_placed_as_its_shapes_say(kind, sizes) -> None:
    mesh = make_mesh(MeshConfig(*sizes))
    rows = rows_of(kind, 8, 8)
    batch, shapes = placing.place_batch(mesh, kind, rows, 8), placing.batch_shapes(mesh, kind, 8, 8)
    for name, array_ in rows.items():
        np.testing.assert_array_equal(getattr(batch, name), array_)
    assert jax.tree.structure(batch) == jax.tree.structure(shapes)
    for placed, expected in zip(jax.tree.leaves(batch), jax.tree.leaves(shapes), strict=True):
        assert (placed.shape, placed.dtype) == (expected.shape, expected.dtype)
        assert placed.sharding.is_equivalent_to(expected.sharding, placed.ndim)


def test_tokens_and_normalisers_are_counted_by_field() -> None:
    mesh = make_mesh(MeshConfig())
    rows = rows_of(Odd, 8, 4) | {"kept": np.array([1, 0, 0, 1, 1, 0, 0, 0], np.float32)}
    batch = placing.place_batch(mesh, Odd, rows, 8)
    assert (float(batch.pairs), float(batch.mass)) == (3, np.arange(32).sum())
    assert batch.token_count == 8 * 2 * 4 == 8 * Odd.tokens_per_row(4)
    assert Odd.row_bytes(4) == 2 * 4 * 4 + 4 * 4 + 4
    assert {name: row.shape for name, row in Odd.empty_row(4).items()} == {
        "ids": (2, 4),
        "advantages": (4,),
        "kept": (),
    }


def test_placed_batch_is_split_by_row_and_counts_its_weights() -> None:
    weights = np.zeros((8, 4), np.float32)
    weights[:3] = 1
    rows = rows_of(TokenBatch, 8, 4) | {"loss_weights": weights}
    batch = placing.place_batch(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)), TokenBatch, rows, 8)
    assert float(batch.normalizer) == 12
    assert {shard.data.shape for shard in batch.tokens.addressable_shards} == {(2, 4)}


def test_a_batch_of_padding_has_a_normaliser_above_zero() -> None:
    empty = {name: np.stack([row] * 8) for name, row in TokenBatch.empty_row(2).items()}
    assert float(placing.place_batch(make_mesh(MeshConfig(fsdp=8)), TokenBatch, empty, 8).normalizer) == 1.0


def test_batch_that_the_mesh_does_not_divide_is_refused() -> None:
    with pytest.raises(UserError, match="12 rows are not divisible by the 8 devices"):
        placing.local_rows(make_mesh(MeshConfig(fsdp=8)), 12)
