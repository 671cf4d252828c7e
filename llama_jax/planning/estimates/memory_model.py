"""An estimate of the memory of a training step, without compiling it: what is alive on a device when most is, at the
loss or in the backward pass of a layer. What must be kept is counted; how many arrays of a layer are alive at once is
up to the compiler's schedule, and was fitted to what libtpu 0.0.42 reports of 44 steps: within 2 % of half of them and
12 % of all that take a gibibyte, and within 5 % of the published recipes, which were no part of the fit
(`tests/planning/estimates/test_memory_model.py`)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from llama_jax.model import paths
from llama_jax.objectives.cross_entropy import CHUNK_BYTES
from llama_jax.planning.estimates.layout import StepPlan
from llama_jax.planning.estimates.time_model import attention_kind

FLOAT32, BFLOAT16 = 4, 2

Number: TypeAlias = int | float


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of one device."""

    moment: Literal["loss", "layer"]
    """When most is alive: at the `loss`, or in the backward pass of a `layer`."""
    bytes_by_kind: Mapping[str, int]
    """What is alive then. Kept between steps: `parameters`, `optimizer`, `batch`. Of a step: `gradients` (float32,
    twice when microbatches are added up), `weights` (in the type of the products: this device's part of all layers, and
    a gathered layer), `saved activations`, `layer activations`, `head` (gathered, and its gradient), `logits`."""

    @property
    def total(self) -> int:
        return sum(self.bytes_by_kind.values())


def memory_estimate(plan: StepPlan) -> MemoryEstimate:
    """The estimate for one device."""
    kept = _kept(plan) | {"saved activations": plan.model.num_layers * plan.tokens * _saved_bytes(plan)}
    loss, layer = (
        {kind: round(size) for kind, size in (kept | more).items()} for more in (_at_the_loss(plan), _at_a_layer(plan))
    )
    return max(MemoryEstimate("loss", loss), MemoryEstimate("layer", layer), key=lambda estimate: estimate.total)


def _kept(plan: StepPlan) -> dict[str, Number]:
    found = plan.parameters.values()
    rows = plan.training.batch_size // (plan.mesh.data * plan.mesh.fsdp)
    return {
        "parameters": sum(p.held(plan.mesh) * p.stored for p in found),
        "optimizer": 2 * FLOAT32 * _trained(plan),
        "batch": rows * plan.batch.row_bytes(plan.sequence_length) / plan.mesh.sequence,
    }


def _trained(plan: StepPlan) -> Number:
    """Elements on a device that train."""
    return sum(p.held(plan.mesh) for p in plan.parameters.values() if p.trains)


class _Widths:
    """Elements a token, on one device: of the residual stream, queries, keys (or values), the MLP and the statistics of
    the softmax."""

    def __init__(self, plan: StepPlan) -> None:
        model, tensor = plan.model, plan.mesh.tensor
        self.residual = model.width
        self.queries = model.num_heads * model.head_size / tensor
        self.keys = model.num_kv_heads * model.head_size / tensor
        self.mlp = model.mlp_width / tensor
        self.statistics = model.num_heads / tensor


def _projected(plan: StepPlan) -> Number:
    """Elements a token of what the adapters of a layer make of their inputs."""
    return sum(
        p.shape[-1] for path, p in plan.parameters.items() if paths.is_adapter(path) and paths.name_of(path) == "a"
    )


def _saved_bytes(plan: StepPlan) -> Number:
    """What a remat policy keeps of a token from the forward pass of a layer."""
    widths, wide = _Widths(plan), plan.compute_bytes
    attention = widths.queries * wide + widths.statistics * FLOAT32
    if plan.compute.remat == "full":
        return widths.residual * wide
    if plan.compute.remat == "attention":
        return widths.residual * wide + attention
    products = (widths.residual + widths.queries + 2 * widths.keys + 2 * widths.mlp) * wide
    if plan.compute.remat == "dots":
        return widths.residual * wide + attention + products + _projected(plan) * wide
    # Also what lies between: norms in float32, rotated heads, the parts of SwiGLU.
    between = 3 * widths.residual * wide + 4 * widths.residual * FLOAT32 + 4 * widths.mlp * wide
    return widths.residual * wide + attention + products + between


def _at_the_loss(plan: StepPlan) -> dict[str, Number]:
    found, model = plan.parameters, plan.model
    outputs = 0 if model.scalar_head else model.padded_vocab_size
    matrix = model.width * outputs / plan.mesh.tensor
    head = paths.TABLE if model.table_is_head else paths.SCORE if model.scalar_head else paths.HEAD
    trains = found[head].trains
    logits = min(CHUNK_BYTES[plan.platform], plan.tokens * outputs * FLOAT32) / plan.mesh.tensor
    return {
        "gradients": FLOAT32 * _trained(plan) if plan.training.microbatches > 1 else 0,
        "weights": _casts(plan),
        "layer activations": 2 * plan.tokens * model.width * plan.compute_bytes,
        "head": matrix * (plan.compute_bytes + (FLOAT32 if trains else 0)),
        "logits": logits,
    }


def _at_a_layer(plan: StepPlan) -> dict[str, Number]:
    copies = 2 if plan.training.microbatches > 1 else 1
    return {
        "gradients": copies * FLOAT32 * _trained(plan),
        "weights": _casts(plan) + _gathered_layer(plan),
        "layer activations": plan.tokens * _working_bytes(plan) + _scores(plan),
    }


def _casts(plan: StepPlan) -> Number:
    """This device's part of the layers' matrices in the type of the products, made once for all turns of the loop."""
    return sum(
        p.held(plan.mesh) * plan.compute_bytes
        for path, p in plan.parameters.items()
        if paths.split_kernel(path) and "embed" in p.axes and p.stored > plan.compute_bytes
    )


def _gathered_layer(plan: StepPlan) -> Number:
    """One layer's matrices whole, as they enter products. The codes of quantised ones come on top; those of int8 are
    cast one matrix at a time."""
    codes, used, one_by_one = 0.0, [], False
    for path, parameter in plan.parameters.items():
        if paths.split_kernel(path) and "embed" in parameter.axes:
            elements = parameter.held(plan.mesh) * plan.weight_parts / plan.model.num_layers
            used.append(elements * plan.compute_bytes)
            if parameter.stored < BFLOAT16:
                codes += elements * parameter.stored
                one_by_one = parameter.stored > 1
    return codes + (max(used) if one_by_one else sum(used))


_WORKING: Mapping[str, tuple[Number, Number]] = {"none": (2, 1), "dots": (3, 3), "attention": (5, 6.5), "full": (5, 8)}
"""Arrays of one layer that are alive at once in its backward pass: of the MLP's width, and of the model's (half of them
of the residual stream, half of the heads). Fitted."""
_WITHOUT_GRADIENTS = 4
"""The most of each where the layer's weights have no gradients. Fitted."""


def _working_bytes(plan: StepPlan) -> Number:
    """Of a token."""
    widths = _Widths(plan)
    counts = _WORKING[plan.compute.remat]
    if not any(p.trains for path, p in plan.parameters.items() if paths.split_kernel(path)):
        counts = [min(count, _WITHOUT_GRADIENTS) for count in counts]
    mlp, model = counts
    return plan.compute_bytes * (mlp * widths.mlp + model * (widths.residual + widths.queries) / 2)


_SCORES = 1.5
"""Of `xla` attention: all scores of a layer in float32, and in the type of the products."""


def _scores(plan: StepPlan) -> Number:
    if attention_kind(plan) != "xla":
        return 0
    by_row = plan.model.num_heads / plan.mesh.tensor * plan.sequence_length**2 / plan.mesh.sequence
    return _SCORES * FLOAT32 * plan.rows * by_row
