"""Our side of `benchmark dpo`, in its own process: the step of `dpo` on the first batches of a run, again and again."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from llama_jax.benchmarks import turns
from llama_jax.benchmarks.config import DpoBenchmarkConfig
from llama_jax.checkpoints.opening import ModelReference, open_params, tokenizer_for
from llama_jax.checkpoints.weight_reading import open_weights
from llama_jax.core import tree
from llama_jax.core.errors import UserError
from llama_jax.core.processes.distributed import start_up
from llama_jax.data.instructions.template_dates import today
from llama_jax.data.rows.streams import Rows
from llama_jax.runs.completion_sums import completion_sums
from llama_jax.runs.methods import Method, build_program


@runtime_checkable
class TaughtPairs(Protocol):
    """What pairs teach, such as `supervised.fine_tuning.Supervision`."""

    @property
    def objective(self) -> Callable[..., Any]: ...
    @property
    def open_data(self) -> Callable[..., Any]: ...


def dpo_turn(config: DpoBenchmarkConfig, method: Method, taught: TaughtPairs) -> tuple[turns.Turn, dict[str, Any]]:
    """Passes over the pairs, warmed up, which give the mean loss of the last one, and facts; `pairs` of ids are among
    them, and their log p under the reference model.

    Raises:
        UserError: JAX is not on CPU, or there are too few pairs.
    """
    run: Any = config.run
    who = start_up(run.distributed)
    if jax.devices()[0].platform != "cpu":
        raise UserError(f"--against {config.against}: compares on CPU, but this is {who}; set JAX_PLATFORMS=cpu")
    path = str(run.model)
    weights = open_weights(path, step=run.step, say=_unsaid)
    day = run.data.template_date or today()
    tokenizer = tokenizer_for(weights.files, weights.config, path, given=run.tokenizer, day=day)
    batches = _batches(taught.open_data(tokenizer, None, _unsaid), config.pairs)
    program = build_program(run, method, taught.objective, weights.config, run.data.sequence_length)
    jax.set_mesh(program.mesh)
    opened = ModelReference(path, run.step)
    params = open_params(opened, run.compute, store=method.store, identify=False, say=_unsaid).params
    kind: Any = program.batch
    reference = completion_sums(program.model, kind, params, batches)
    given = 0
    for rows in batches:
        there = rows["example_weights"] > 0
        rows["reference"][there] = reference[given : given + there.sum()]
        given += int(there.sum())
    state, frozen = program.begin(method.begin(params, jax.random.key(run.seed)))
    del params

    def turn(passes: int) -> float:
        nonlocal state
        losses = []
        for rows in itertools.chain(*[batches] * passes):
            state, metrics = program.step(state, frozen, program.place_batch(rows, len(rows["tokens"])))
            losses.append(metrics["loss"])
        jax.block_until_ready((state, losses))
        return float(np.mean(jax.device_get(losses[-len(batches) :])))

    turn(1)
    pairs = [pair for rows in batches for pair in pairs_of(rows)]
    return turn, {
        "what": f"jax {jax.__version__}, {turns.processors()} threads",
        "trained": tree.size(program.state_shapes.trainable),
        "updates": len(batches),
        "pairs": pairs,
        "places": sum(rows["tokens"].size for rows in batches),
        "reference": reference.tolist(),
    }


def _batches(data: Any, count: int) -> list[Rows]:
    """The first batches of a run, until so many pairs are in them."""
    if len(data.training) < count:
        raise UserError(f"--pairs {count}: there are {len(data.training)}; use fewer, or another data.source")
    batches, found = [], 0
    try:
        for rows, _ in data.start():
            batches.append(rows)
            found += int(rows["example_weights"].sum())
            if found >= count:
                return batches
    finally:
        data.close()
    raise AssertionError("batches come without end")


def pairs_of(rows: Rows) -> Iterator[dict[str, list[int]]]:
    """The pairs of a batch as TRL takes them."""
    slots, members = rows["starts"].shape[1:]
    for row in range(len(rows["tokens"])):
        tokens, segments, learned = (rows[name][row] for name in ("tokens", "segment_ids", "loss_weights"))
        for slot in np.flatnonzero(rows["example_weights"][row]).tolist():
            shared = tokens[segments == slots * members + slot + 1]
            own = [segments == slot * members + member + 1 for member in range(members)]
            chosen, rejected = (np.concatenate([shared, tokens[places]]).tolist() for places in own)
            answers = [int(learned[places].sum()) for places in own]
            prompt = chosen[: -answers[0]]
            assert prompt == rejected[: -answers[1]]
            yield {"prompt_ids": prompt, "chosen_ids": chosen[-answers[0] :], "rejected_ids": rejected[-answers[1] :]}


def _unsaid(line: str) -> None:
    """Progress that nobody reads."""
