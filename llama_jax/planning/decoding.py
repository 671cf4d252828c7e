"""The program that decodes one token a row, lowered for devices that need not be here."""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from llama_jax.core import sharding, tree
from llama_jax.core.arrays import Array, PyTree
from llama_jax.core.errors import UserError
from llama_jax.core.placing import indivisible_rows
from llama_jax.inference import programs
from llama_jax.model import paths
from llama_jax.model.cache import cache_axes
from llama_jax.model.llama import LanguageModel, unstacked
from llama_jax.model.quantized import Quantization, cast_plain, store_as, stored_axes
from llama_jax.planning.report import Lowered


def lowered_decode(
    model: LanguageModel, mesh: Mesh, rows: int, slots: int, weights: Quantization | None = None
) -> Lowered:
    """`inference.programs.decode` of all slots with the weights in the type of computation, or quantised, laid out as
    in training, and the state donated. Its model FLOPs are those of all rows with full caches: two for each parameter
    in a matrix product, and for each slot, query head and element of a head.

    Raises:
        UserError: the mesh does not divide the rows or a parameter, or the slots exceed the model's context.
    """
    config = model.config
    if problem := indivisible_rows(rows, sharding.size_of("batch", mesh)):
        raise UserError(f"--decode_rows: {problem}")
    if slots > config.context_length:
        raise UserError(f"--decode_slots: {slots} exceeds model.context_length {config.context_length}")
    dtype = jnp.dtype(model.compute.dtype)
    with jax.set_mesh(mesh):
        stored = model.shapes()
        if weights is not None:
            stored = jax.eval_shape(lambda params: store_as(params, weights), stored)
        shapes = jax.eval_shape(lambda params: unstacked(cast_plain(params, dtype)), stored)
        by_layer = _by_layer(stored_axes(model.axes, stored), config.num_layers)
        params = sharding.with_shardings(shapes, sharding.shardings_of(mesh, shapes, by_layer))
        state = jax.eval_shape(lambda: programs.empty_slots(model, rows, slots, dtype))
        places = jax.tree.map(lambda leaf: sharding.row_sharding(mesh), state)
        axes = cache_axes(state.caches)
        of_caches = [jax.NamedSharding(mesh, sharding.mesh_axes(each, mesh)) for each in axes]
        places = places.replace(caches=jax.tree.unflatten(jax.tree.structure(state.caches), of_caches))
        state = sharding.with_shardings(state, places)
        masks = jax.ShapeDtypeStruct((rows, programs.mask_words(model)), jnp.uint32, sharding=sharding.replicated(mesh))

        def step(params: PyTree, slots: programs.Slots, masks: Array) -> tuple[programs.Slots, programs.Output]:
            return programs.decode(model, params, slots, None, masks)

        whole = sharding.replicated(mesh)
        traced = jax.jit(step, donate_argnums=1, out_shardings=(places, whole)).trace(params, state, masks)
    lookup = 0 if config.tie_embeddings else config.vocab_size * config.width
    attention = 4 * config.num_layers * config.num_heads * config.head_size * slots
    flops = rows * (2 * (model.parameter_count() - lookup) + attention)
    held = {"parameters": params, "caches": state.caches, "batch": state.replace(caches=[])}
    return Lowered(traced, mesh, held, flops, [], loop_turns=31.0)


def _by_layer(axes: PyTree, count: int) -> PyTree:
    """Logical axes of the list layout, of so many layers."""
    rest: dict[str, PartitionSpec] = {}
    for path, own in tree.flatten(axes).items():
        if paths.in_layers(path):
            rest |= {paths.of_layer(path, layer): PartitionSpec(*own[1:]) for layer in range(count)}
        else:
            rest[path] = own
    return tree.unflatten(rest)
