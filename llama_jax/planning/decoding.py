"""The programs of an engine, which read prompts and decode a token a row, lowered for devices that need not be here."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from llama_jax.core import sharding, tree
from llama_jax.core.arrays import Array, PyTree
from llama_jax.core.errors import UserError
from llama_jax.core.placing import indivisible_rows
from llama_jax.inference import programs
from llama_jax.inference.layout import in_layers
from llama_jax.model import paths
from llama_jax.model.cache import cache_axes
from llama_jax.model.config import Quantization
from llama_jax.model.llama import LanguageModel
from llama_jax.model.quantized import store_as, stored_axes
from llama_jax.planning.report import Lowered


def lowered_decode(
    model: LanguageModel, mesh: Mesh, rows: int, slots: int, weights: Quantization | None = None
) -> Lowered:
    """`inference.programs.decode` of all slots with the weights in the type of computation, or quantised.

    Raises:
        UserError: the mesh does not divide the rows or a parameter, or the slots exceed the model's context.
    """
    if problem := indivisible_rows(rows, sharding.size_of("batch", mesh)):
        raise UserError(f"--decode_rows: {problem}")
    if slots > model.config.context_length:
        raise UserError(f"--decode_slots: {slots} exceeds model.context_length {model.config.context_length}")
    with jax.set_mesh(mesh):
        stored = model.shapes()
        if weights is not None:
            stored = jax.eval_shape(lambda params: store_as(params, weights), stored)
        params = decoding_shapes(model, stored, stored_axes(model.axes, stored))
        return decode_step(model, params, slots_of(model, rows, slots))


def decoding_shapes(model: LanguageModel, params: PyTree, axes: PyTree) -> PyTree:
    """What `inference.layout.decoding_params` makes of parameters, laid out as in training on the mesh in use."""
    mesh = jax.sharding.get_mesh()
    shapes = jax.eval_shape(functools.partial(in_layers, jnp.dtype(model.compute.dtype)), params)
    return sharding.with_shardings(
        shapes, sharding.shardings_of(mesh, shapes, _by_layer(axes, model.config.num_layers))
    )


def slots_of(model: LanguageModel, rows: int, slots: int) -> programs.Slots:
    """Those of an engine, so many tokens each, on the mesh in use."""
    mesh = jax.sharding.get_mesh()
    state = jax.eval_shape(lambda: programs.empty_slots(model, rows, slots, jnp.dtype(model.compute.dtype)))
    places = jax.tree.map(lambda leaf: sharding.row_sharding(mesh), state)
    of_caches = [jax.NamedSharding(mesh, sharding.mesh_axes(each, mesh)) for each in cache_axes(state.caches)]
    places = places.replace(caches=jax.tree.unflatten(jax.tree.structure(state.caches), of_caches))
    return sharding.with_shardings(state, places)


def decode_step(model: LanguageModel, params: PyTree, slots: programs.Slots) -> Lowered:
    """One token for each row, on the mesh in use; the state is donated. Its model FLOPs are those of full caches: two
    for each parameter in a matrix product, and for each slot, query head and element of a head."""
    mesh, (rows, length) = jax.sharding.get_mesh(), slots.tokens.shape
    masks = jax.ShapeDtypeStruct((rows, programs.mask_words(model)), jnp.uint32, sharding=sharding.replicated(mesh))

    def step(params: PyTree, slots: programs.Slots, masks: Array) -> tuple[programs.Slots, programs.Output]:
        return programs.decode(model, params, slots, None, masks)

    places = (_places(slots), sharding.replicated(mesh))
    traced = jax.jit(step, donate_argnums=1, out_shardings=places).trace(params, slots, masks)
    flops = rows * (2 * _multiplied(model, params) + _attention(model) * length)
    return Lowered(traced, mesh, _held(params, slots), flops, [], loop_turns=31.0)


def prefill_step(model: LanguageModel, params: PyTree, slots: programs.Slots, readers: int, size: int) -> Lowered:
    """Pieces of so many tokens of as many prompts as there are readers, on the mesh in use; the state is donated. Its
    model FLOPs are those of caches that are full behind the pieces."""
    mesh, length = jax.sharding.get_mesh(), slots.tokens.shape[1]
    whole = sharding.replicated(mesh)
    each = jax.ShapeDtypeStruct((readers,), jnp.int32, sharding=whole)
    chunk = programs.Chunk(jax.ShapeDtypeStruct((readers, size), jnp.int32, sharding=whole), each, each, each, each)

    def step(params: PyTree, slots: programs.Slots, chunk: programs.Chunk) -> programs.Slots:
        return programs.prefill(model, params, slots, chunk)

    traced = jax.jit(step, donate_argnums=1, out_shardings=_places(slots)).trace(params, slots, chunk)
    head = 0 if model.config.table_is_head else model.config.vocab_size * model.config.width  # of which nothing is read
    products = _multiplied(model, params) - head
    flops = readers * size * (2 * products + _attention(model) * (length - size // 2))
    return Lowered(traced, mesh, _held(params, slots), flops, [])


def _multiplied(model: LanguageModel, params: PyTree) -> int:
    """Parameters in matrix products, an adapter's among them."""
    lookup = 0 if model.config.table_is_head else model.config.vocab_size * model.config.width
    adapter = sum(leaf.size for path, leaf in tree.flatten(params).items() if paths.is_adapter(path))
    return model.parameter_count() - lookup + adapter


def _attention(model: LanguageModel) -> int:
    """FLOPs of a query and a key."""
    return 4 * model.config.num_layers * model.config.num_heads * model.config.head_size


def _held(params: PyTree, slots: programs.Slots) -> dict[str, PyTree]:
    return {"parameters": params, "caches": slots.caches, "batch": slots.replace(caches=[])}


def _places(shapes: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: leaf.sharding, shapes)


def _by_layer(axes: PyTree, count: int) -> PyTree:
    """Logical axes of the list layout, of so many layers."""
    rest: dict[str, PartitionSpec] = {}
    for path, own in tree.flatten(axes).items():
        if paths.in_layers(path):
            rest |= {paths.of_layer(path, layer): PartitionSpec(*own[1:]) for layer in range(count)}
        else:
            rest[path] = own
    return tree.unflatten(rest)
