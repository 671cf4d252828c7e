"""What the devices of a mesh must send each other for one training step, because of how the parameters and the batch
are laid out: the least that any program with this layout sends, to hold a compiled one against. Knows the layout of
`core.sharding` and the structure of the model, and compiles nothing."""

import itertools
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from llama_jax.core import sharding, tree
from llama_jax.model import paths
from llama_jax.planning.compiled.collectives import Collective, Phase
from llama_jax.planning.compiled.device_groups import along, span
from llama_jax.training.program import Program

_NAMES = {"float32": "f32", "bfloat16": "bf16", "int8": "s8", "uint8": "u8"}
_PASSES: tuple[Phase, ...] = ("forward", "backward")
_GRADIENT_BYTES = 4
"""Of an element of a gradient that is added up over microbatches."""


def layout_minimum(program: Program) -> list[Collective]:
    """The exchanges that one step cannot do without, alike ones together; `wire_bytes` of them adds up to the minimum.

    - A matrix of a layer is gathered for the forward and for the backward pass of each microbatch in the type it is
      multiplied in (a quantised one in its codes), and where it trains, its gradient is reduced in that type to the
      parts that devices store. A head is gathered once, since its gradient is made at once.
    - What devices with other tokens hold the same part of (`data`), they add up once a step, in the type of a gradient,
      or of the sum over microbatches where that is less.
    - Looking tokens up exchanges their rows of the table, forward and backward (the table is not gathered).
    - `tensor` adds up activations after the attention and the MLP of each layer, and their gradients before them
      (Megatron, arXiv:1909.08053), the attention's once more where remat does not keep them; the rows of the table; and
      the gradient of the last hidden state.
    - `sequence` gathers keys and values of whole rows for both passes, and scatters their gradients.

    Sums of single numbers, token ids and statistics of the loss are left out: they are thousandths of it.
    """
    layout = _Layout(program, program.mesh)
    found = itertools.chain(layout.of_weights(), layout.of_gradients(), layout.of_activations())
    return [each for each in found if each.group_size > 1 and each.bytes]


@dataclass(frozen=True)
class _Layout:
    program: Program
    mesh: Mesh

    @property
    def microbatches(self) -> int:
        return self.program.config.microbatches

    @property
    def layers(self) -> int:
        return self.program.model.config.num_layers

    @property
    def dtype(self) -> jnp.dtype:
        """In which the model multiplies."""
        return jnp.dtype(self.program.model.compute.dtype)

    def axes(self, *logical: str) -> tuple[str, ...]:
        """The mesh axes that split logical axes, in the order of the mesh."""
        names = {name for axis in logical for name in _flat(sharding.mesh_axes((axis,), self.mesh)[0])}
        return tuple(name for name in self.mesh.axis_names if name in names)

    def leaves(self) -> Iterator[tuple[str, jax.ShapeDtypeStruct, bool]]:
        """Path, shape and whether it trains, of each parameter."""
        for path, leaf in tree.flatten(self.program.state_shapes.trainable).items():
            yield path, leaf, True
        for path, leaf in tree.flatten(self.program.frozen_shapes).items():
            yield path, leaf, False

    def of_weights(self) -> Iterator[Collective]:
        sums: Counter[tuple[tuple[str, ...], str, bool]] = Counter()
        for path, leaf, _ in self.leaves():
            if split := self.split_storage(path, leaf):
                dtype = jnp.dtype(leaf.dtype) if paths.is_quantized(path) else self.dtype
                key = (split, _NAMES[dtype.name], paths.in_layers(path))
                sums[key] += self.part_bytes(leaf, dtype, kept=split)
        for (axes, dtype, in_layers), size in sums.items():
            what = "weights of a layer" if in_layers else "weights outside of the layers"
            turns = self.layers if in_layers else 1
            for phase in _PASSES if in_layers else _PASSES[:1]:
                yield self.exchange("all-gather", what, phase, axes, dtype, size // turns, turns * self.microbatches)

    def of_gradients(self) -> Iterator[Collective]:
        tokens = self.axes("batch", "length")
        sums: Counter[tuple[str, tuple[str, ...], str, bool]] = Counter()
        for path, leaf, trains in self.leaves():
            if not trains:
                continue
            in_layers = paths.in_layers(path)
            is_matrix = _spec_axes(leaf) or paths.is_adapter(path)
            dtype = self.dtype if is_matrix else jnp.dtype("float32")
            split = self.split_storage(path, leaf)
            if split:
                key = ("reduce-scatter", split, _NAMES[dtype.name], in_layers)
                sums[key] += self.part_bytes(leaf, dtype, kept=split)
            same = tuple(axis for axis in tokens if axis not in _spec_axes(leaf))
            if self.microbatches * dtype.itemsize > _GRADIENT_BYTES:
                dtype = jnp.dtype("float32")
            key = ("all-reduce", same, _NAMES[dtype.name], in_layers)
            sums[key] += self.part_bytes(leaf, dtype)
        for (kind, axes, dtype, in_layers), size in sums.items():
            what = "gradients of a layer" if in_layers else "gradients outside of the layers"
            turns = self.layers if in_layers else 1
            count = turns * (self.microbatches if kind == "reduce-scatter" else 1)
            yield self.exchange(kind, what, "backward", axes, dtype, size // turns, count)

    def of_activations(self) -> Iterator[Collective]:
        config, name = self.program.model.config, _NAMES[self.dtype.name]
        row_parts = sharding.size_of("length", self.mesh)
        parts = sharding.size_of("batch", self.mesh) * row_parts
        tokens = self.program.config.batch_size * self.program.sequence_length // parts // self.microbatches
        residual = tokens * config.width * self.dtype.itemsize
        in_layers, once = self.layers * self.microbatches, self.microbatches

        table_trains = any(path == paths.TABLE and trains for path, _, trains in self.leaves())
        for phase in _PASSES if table_trains else _PASSES[:1]:
            yield self.exchange("all-to-all", "rows of the table", phase, self.axes("embed"), name, residual, once)
        yield self.exchange("all-reduce", "rows of the table", "forward", self.axes("vocab"), name, residual, once)
        if not config.scalar_head:
            yield self.exchange("all-reduce", "last hidden state", "backward", self.axes("vocab"), name, residual, once)

        tensor = self.axes("heads", "mlp")
        again = 1 if self.program.model.compute.remat in ("full", "attention") else 0
        for phase, sums in zip(_PASSES, (2, 2 + again), strict=True):
            yield self.exchange("all-reduce", "residual stream", phase, tensor, name, residual, sums * in_layers)

        length = self.axes("length")
        heads = config.num_kv_heads // sharding.size_of("kv_heads", self.mesh)
        keys = 2 * tokens * row_parts * heads * config.head_size * self.dtype.itemsize
        for phase in _PASSES:
            yield self.exchange("all-gather", "keys and values", phase, length, name, keys, in_layers)
        yield self.exchange("reduce-scatter", "keys and values", "backward", length, name, keys, in_layers)

    def split_storage(self, path: str, leaf: jax.ShapeDtypeStruct) -> tuple[str, ...]:
        """The axes along which a parameter is gathered for use and its gradient scattered. The table of an embedding is
        not, except as the head."""
        if path == paths.TABLE and not self.program.model.config.table_is_head:
            return ()
        return tuple(axis for axis in self.axes("embed") if axis in _spec_axes(leaf))

    def part_bytes(self, leaf: jax.ShapeDtypeStruct, dtype: jnp.dtype, kept: tuple[str, ...] = ()) -> int:
        """Of what one device holds of a parameter, when it has all parts along the axes `kept`."""
        split = math.prod(self.mesh.shape[axis] for axis in _spec_axes(leaf) if axis not in kept)
        return math.prod(leaf.shape) * dtype.itemsize // split

    def exchange(
        self, kind: str, what: str, phase: Phase, axes: tuple[str, ...], dtype: str, size: int, count: int
    ) -> Collective:
        groups = along(self.mesh, axes)
        _, slices, hosts = span(groups, self.mesh)
        return Collective(
            kind=kind,
            dtypes=(dtype,),
            shape="",
            bytes=size,
            group_size=len(groups[0]),
            count=count,
            where="",
            phase=phase,
            name=what,
            axes=axes,
            slices=slices,
            hosts=hosts,
        )


def _flat(names: str | tuple[str, ...] | None) -> tuple[str, ...]:
    if names is None:
        return ()
    return (names,) if isinstance(names, str) else names


def _spec_axes(leaf: jax.ShapeDtypeStruct) -> tuple[str, ...]:
    """The mesh axes that split a parameter."""
    assert leaf.sharding is not None
    return tuple(name for part in leaf.sharding.spec for name in _flat(part))  # pyright: ignore
