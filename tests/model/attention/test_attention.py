"""Every implementation of attention computes the textbook formula and its gradients, in float64; those made for a TPU
or a GPU are run by the interpreters of Pallas."""

import functools
import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask
from sweeps import some

from llama_jax.core.config import MeshConfig
from llama_jax.core.errors import UserError
from llama_jax.core.mesh import make_mesh
from llama_jax.model.attention import choice as attention_choice
from llama_jax.model.attention import kernels as attention_kernels
from llama_jax.model.attention.blocks import block_size
from llama_jax.model.attention.choice import CHECKPOINT_NAME, Shapes, attention, choose
from llama_jax.model.attention.sequence import pieces, query_positions

IMPLEMENTATIONS = ["xla", "blocked", "splash", "triton"]
KERNELS = ["blocked", "splash", "triton"]


class Case(NamedTuple):
    rows: int = 1
    length: int = 384
    heads: int = 2
    kv_heads: int = 2
    head_size: int = 32
    documents: tuple[int, ...] = ()
    """Length of each document of a row; the rest is padding (segment 0). None: one document, no segments."""
    prefixes: tuple[int, ...] = ()
    """Number of the document that each document sees beside itself, from padding on."""


def segments_of(case: Case) -> np.ndarray:
    ids = np.repeat(np.arange(len(case.documents)) + 1, case.documents)
    row = np.pad(ids, (0, case.length - len(ids)))
    # The second row has other borders.
    return np.stack([np.roll(row, 0 if number == 0 else -37) for number in range(case.rows)]).astype(np.int32)


def inputs(case: Case, dtype=jnp.float32):
    """Query, key, value, and the gradient of what is mixed of them."""
    keys = jax.random.split(jax.random.key(0), 4)
    counts = (case.heads, case.kv_heads, case.kv_heads, case.heads)
    return [
        jax.random.normal(key, (case.rows, case.length, count, case.head_size)).astype(dtype)
        for key, count in zip(keys, counts, strict=True)
    ]


@functools.partial(jax.jit, static_argnums=(0, 1))
def computed(case: Case, implementation: str, arrays):
    """What is mixed, and the gradients of query, key and value."""
    *arrays, gradient = arrays
    ids = jnp.asarray(segments_of(case)) if case.documents else None

    def mix(*arrays):
        return attention(
            *arrays,
            query_segments=ids,
            key_segments=ids,
            query_prefixes=jnp.asarray(case.prefixes)[ids] if case.prefixes else None,
            implementation=implementation,
        )

    mixed, gradients = jax.vjp(mix, *arrays)
    return mixed, *gradients(gradient)


def reference(case: Case, arrays):
    """The same by the formula and its derivative, in float64, a head of a row at a time."""
    query, key, value, gradient = (np.asarray(array, np.float64) for array in arrays)
    scale, group = case.head_size**-0.5, case.heads // case.kv_heads
    mixed, by_query, by_key, by_value = (np.zeros_like(array) for array in (query, query, key, value))
    ids = segments_of(case) if case.documents else np.ones((case.rows, case.length))
    for b, n in np.ndindex(case.rows, case.heads):
        q, k, v, g = query[b, :, n], key[b, :, n // group], value[b, :, n // group], gradient[b, :, n]
        seen = ids[b][:, None] == ids[b][None]
        if case.prefixes:
            seen |= np.array(case.prefixes)[ids[b]][:, None] == ids[b][None]
        visible = np.tril(np.ones((case.length, case.length), bool)) & seen
        scores = np.where(visible, q @ k.T * scale, -np.inf)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        by_weight = g @ v.T
        by_score = weights * (by_weight - (weights * by_weight).sum(axis=-1, keepdims=True)) * scale
        mixed[b, :, n], by_query[b, :, n] = weights @ v, by_score @ k
        by_key[b, :, n // group] += by_score.T @ q
        by_value[b, :, n // group] += weights.T @ g
    return mixed, by_query, by_key, by_value


def assert_close(found, expected, tolerance: float) -> None:
    """Equal up to a part of the largest element, for each of several arrays."""
    for name, array, exact in zip(("mixed", "query", "key", "value"), found, expected, strict=True):
        error = np.abs(np.asarray(array, np.float64) - np.asarray(exact, np.float64)).max()
        assert error < tolerance * np.abs(exact).max(), name


CASES = {
    "causal": Case(),
    "packed": Case(rows=2, documents=(100, 29, 200)),
    "grouped": Case(heads=6, documents=(250,)),
    "one key head": Case(heads=3, kv_heads=1, documents=(384,)),
    "shared prompts": Case(rows=2, kv_heads=1, documents=(60, 90, 50, 40, 30, 40), prefixes=(0, 1, 1, 1, 4, 4, 4)),
    "long": Case(length=2048, heads=2, kv_heads=1, documents=(1100, 900)),
    "heads of 64": Case(heads=2, kv_heads=1, head_size=64, documents=(150, 200)),
    "heads of 80": Case(heads=2, kv_heads=1, head_size=80, documents=(150, 200)),
    "heads of 128": Case(heads=2, kv_heads=1, head_size=128, documents=(150, 200)),
}


DEFAULT_CASES = ("packed", "grouped", "shared prompts")


def cases() -> Iterator[Any]:
    """Of each case and implementation; the size of a head makes a difference to kernels alone."""
    for (name, case), implementation in itertools.product(CASES.items(), IMPLEMENTATIONS):
        if case.prefixes and implementation in ("splash", "triton"):
            continue
        is_default = name in DEFAULT_CASES or (name, implementation) in (("long", "blocked"), ("heads of 80", "splash"))
        marks = [pytest.mark.slow] * (not is_default)
        yield pytest.param(case, implementation, marks=marks, id=f"{name}-{implementation}")


@pytest.mark.parametrize(("case", "implementation"), list(cases()))
def test_values_and_gradients_equal_the_reference(implementation, case) -> None:
    arrays = inputs(case)
    assert_close(computed(case, implementation, arrays), reference(case, arrays), 1.5e-6)


@pytest.mark.parametrize("implementation", ["splash", "triton"])
def test_kernels_refuse_prompts_that_completions_share(implementation) -> None:
    case = CASES["shared prompts"]
    with pytest.raises(UserError, match=f"compute.attention: {implementation} .*share their prompt"):
        computed(case, implementation, inputs(case))


@pytest.mark.parametrize("implementation", some(IMPLEMENTATIONS, ("splash", "blocked")))
def test_of_bfloat16_only_the_roundings_of_bfloat16_are_seen(implementation) -> None:
    """Weights, gradients of scores, and results have 8 bits; sums of 384 of them in bfloat16 would be further off."""
    arrays = inputs(CASES["grouped"], jnp.bfloat16)
    found = computed(CASES["grouped"], implementation, arrays)
    assert {array.dtype for array in found} == {jnp.dtype(jnp.bfloat16)}
    assert_close(found, reference(CASES["grouped"], arrays), 2**-6)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    ("queries", "seen"),
    [(slice(210, 300), slice(200, 300)), (slice(0, 90), slice(0, 90)), (slice(365, 370), slice(350, 370))],
    ids=["second document", "first document", "padding"],
)
def test_later_tokens_and_other_documents_have_no_influence_at_all(implementation, queries, seen) -> None:
    case = Case(heads=2, kv_heads=1, documents=(200, 150))
    query, key, value, gradient = inputs(case)
    only_these = jnp.zeros_like(gradient).at[:, queries].set(gradient[:, queries])
    mixed, by_query, *by_others = computed(case, implementation, (query, key, value, only_these))

    hidden = np.ones(case.length, bool)
    hidden[seen] = False
    for array in by_others:
        assert not np.asarray(array)[:, hidden].any()
        assert np.asarray(array)[:, ~hidden].all()
    elsewhere = np.ones(case.length, bool)
    elsewhere[queries] = False
    assert not np.asarray(by_query)[:, elsewhere].any()

    changed = [array.at[:, hidden].multiply(1000) for array in (key, value)]
    again = computed(case, implementation, (query, *changed, only_these))[0]
    np.testing.assert_array_equal(again[:, queries], mixed[:, queries])


MESHES = {
    "data, sequence, tensor": MeshConfig(data=2, fsdp=1, sequence=2, tensor=2),
    "sequence 4": MeshConfig(data=1, fsdp=2, sequence=4),
    "no sequence": MeshConfig(data=2, fsdp=2, tensor=2),
}


@pytest.mark.parametrize("implementation", some(IMPLEMENTATIONS, ("blocked",)))
@pytest.mark.parametrize(
    "mesh",
    [
        pytest.param(mesh, marks=[pytest.mark.slow] * (name != "data, sequence, tensor"), id=name)
        for name, mesh in MESHES.items()
    ],
)
def test_eight_devices_compute_what_one_does(implementation, mesh) -> None:
    documents, prefixes = (300, 400, 100, 180), () if implementation in ("splash", "triton") else (0, 1, 1, 3, 3)
    case = Case(4, 1024, heads=4, kv_heads=2, head_size=16, documents=documents, prefixes=prefixes)
    arrays = inputs(case)
    expected = computed(case, implementation, arrays)
    with jax.set_mesh(make_mesh(mesh)):
        assert_close(computed(case, implementation, arrays), expected, 1.5e-6)


@pytest.mark.parametrize("implementation", some(IMPLEMENTATIONS, ("splash", "blocked")))
def test_a_row_without_segments_is_split_as_well(implementation) -> None:
    case = Case(length=512, heads=2, kv_heads=1)
    arrays = inputs(case)
    with jax.set_mesh(make_mesh(MeshConfig(sequence=2, fsdp=1), jax.devices()[:2])):
        assert_close(computed(case, implementation, arrays), reference(case, arrays), 1.5e-6)


@pytest.mark.parametrize("implementation", KERNELS)
def test_a_policy_that_keeps_the_results_computes_them_once(implementation) -> None:
    case = Case()
    *arrays, gradient = inputs(case)

    def operations(policy) -> float:
        layer = jax.checkpoint(lambda *qkv: attention(*qkv, implementation=implementation), policy=policy)

        def both_passes(*qkv):
            mixed, gradients = jax.vjp(layer, *qkv)
            return mixed, gradients(gradient)

        return jax.jit(both_passes).lower(*arrays).cost_analysis()["flops"]

    kept = operations(jax.checkpoint_policies.save_only_these_names(CHECKPOINT_NAME))
    assert kept < operations(jax.checkpoint_policies.nothing_saveable)


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_devices_that_split_a_row_have_the_same_work(parts) -> None:
    """Counted in pairs of a block of queries and a block of keys that are visited."""
    length = 4096
    with jax.set_mesh(make_mesh(MeshConfig(fsdp=1, sequence=parts), jax.devices()[:parts])):
        kernel = attention_kernels._splash_kernel(length, heads=2)
        kinds = (kernel.fwd_mask_info, kernel.dq_mask_info, kernel.dkv_mask_info)
        by_kind = [np.asarray(kind.block_mask)[0].reshape(parts, -1) for kind in kinds]
        starts = query_positions(length)[:: block_size(length)].reshape(parts, -1)
    for blocks in by_kind:
        visited = (blocks > 0).sum(axis=1)
        assert len(set(visited)) == 1 and visited[0] > 0
    assert len(set(starts.sum(axis=1))) == 1


@pytest.mark.parametrize("parts", [1, 2])
def test_blocks_to_visit_are_those_of_the_whole_mask(monkeypatch, parts) -> None:
    def blocks() -> list:
        kernel = attention_kernels._splash_kernel(4096, heads=2)
        return jax.tree.leaves((kernel.fwd_mask_info, kernel.dq_mask_info, kernel.dkv_mask_info))

    with jax.set_mesh(make_mesh(MeshConfig(fsdp=1, sequence=parts), jax.devices()[:parts])):
        found = blocks()
        monkeypatch.setattr(attention_kernels, "_CausalMask", splash_attention_mask.CausalMask)
        for array, expected in zip(found, blocks(), strict=True):
            np.testing.assert_array_equal(array, expected)


def test_a_row_is_cut_so_that_each_device_has_an_early_and_a_late_piece() -> None:
    with jax.set_mesh(make_mesh(MeshConfig(fsdp=1, sequence=8))):
        assert sorted(map(tuple, map(sorted, pieces()))) == [(piece, 15 - piece) for piece in range(8)]
        assert sorted(query_positions(64)) == list(range(64))


def shapes(query_length=2048, key_length=None, rows=8, heads=8, kv_heads=8, head_size=128, dtype="bfloat16"):
    return Shapes(rows, query_length, key_length or query_length, heads, kv_heads, head_size, dtype)


def on(monkeypatch, platform: str) -> None:
    monkeypatch.setattr(attention_choice, "platform", lambda: platform)


@pytest.mark.parametrize(
    ("platform", "case", "choice"),
    [
        ("tpu", shapes(), "splash"),
        ("tpu", shapes(128), "splash"),
        ("tpu", shapes(100), "xla (splash needs rows in multiples of 128 tokens, got 100; "
         "blocked gains nothing in rows of one block of 128 tokens)"),
        ("tpu", shapes(2000), "blocked (splash needs rows in multiples of 128 tokens, got 2000)"),
        ("gpu", shapes(), "triton"),
        ("gpu", shapes(dtype="float32"), "blocked (triton makes float32 products without tensor cores)"),
        ("gpu", shapes(head_size=1024), "blocked (triton needs heads of at most 1024 bytes, "
         "got 1024 numbers in bfloat16)"),
        ("gpu", shapes(1000), "blocked (triton needs rows in multiples of 16 tokens, got 1000)"),
        ("cpu", shapes(), "blocked"),
        ("cpu", shapes(128), "xla (blocked gains nothing in rows of one block of 128 tokens)"),
        ("cpu", shapes(1009), "xla (blocked needs rows in blocks of up to 128 tokens, which do not divide 1009)"),
        ("cpu", shapes(1, 2048), "xla (blocked needs whole rows, got 1 queries for 2048 keys)"),
    ],
)  # fmt: skip
def test_auto_says_what_it_takes_and_why_not_the_fastest(monkeypatch, platform, case, choice) -> None:
    on(monkeypatch, platform)
    assert str(choose("auto", case)) == choice


@pytest.mark.parametrize(
    ("platform", "case", "choice"),
    [
        ("tpu", shapes(512), "blocked (splash needs rows in multiples of 1024 tokens, got 512)"),
        ("tpu", shapes(1024), "splash"),
        ("tpu", shapes(1024, rows=3), "xla (splash needs rows that 2 devices divide, got 3; "
         "blocked needs rows that 2 devices divide, got 3)"),
        ("gpu", shapes(1024, heads=2, kv_heads=2), "blocked (triton needs heads that the 4 devices of mesh.sequence "
         "divide, got 2 on each)"),
        ("gpu", shapes(1024, heads=4, kv_heads=2), "triton"),
        ("cpu", shapes(1020), "xla (blocked needs rows in multiples of 8 tokens, got 1020)"),
    ],
)  # fmt: skip
def test_auto_knows_how_the_mesh_splits_rows(monkeypatch, platform, case, choice) -> None:
    with jax.set_mesh(make_mesh(MeshConfig(fsdp=2, sequence=4))):
        on(monkeypatch, platform)
        assert str(choose("auto", case)) == choice


@pytest.mark.parametrize(
    ("platform", "implementation", "case", "message"),
    [
        ("gpu", "splash", shapes(), "is a kernel for TPUs, and this is a GPU"),
        ("tpu", "triton", shapes(), "is a kernel for GPUs, and this is a TPU"),
        ("tpu", "splash", shapes(100), "needs rows in multiples of 128 tokens, got 100"),
        ("cpu", "blocked", shapes(8, 16), "needs whole rows, got 8 queries for 16 keys"),
    ],
)
def test_what_is_asked_for_by_name_runs_or_says_why_not(monkeypatch, platform, implementation, case, message) -> None:
    on(monkeypatch, platform)
    with pytest.raises(UserError) as raised:
        choose(implementation, case)
    assert str(raised.value) == f"compute.attention: {implementation} {message}"
