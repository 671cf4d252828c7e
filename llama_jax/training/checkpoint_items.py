"""Which arrays of a state a checkpoint holds, by item, and a state from them."""

from collections.abc import Callable

import jax

from llama_jax.core import tree
from llama_jax.core.arrays import PyTree
from llama_jax.training.state import TrainState


def checkpoint_items(
    state: TrainState,
    frozen: PyTree,
    params_item: str = "params",
    is_saved: Callable[[str], bool] = lambda path: True,
) -> dict[str, PyTree]:
    """The array items of a checkpoint: the parameters, and apart from them what only training needs. Takes arrays, or
    shapes as targets of a restore.

    Args:
        params_item: name of the item with the parameters.
        is_saved: which frozen parameters belong to it, by path; the others come from elsewhere when the run resumes.
    """
    rest = {
        "state": tree.unflatten(tree.flatten(state.optimizer_state)),
        "batches": state.batches,
        "updates": state.updates,
        "guard": tree.unflatten(tree.flatten(state.guard)),
    }
    return {params_item: tree.join(state.trainable, tree.split(frozen, is_saved)[0]), "optimizer": rest}


def from_checkpoint_items(
    items: dict[str, PyTree], like: TrainState, unsaved_params: PyTree | None = None, params_item: str = "params"
) -> tuple[TrainState, PyTree]:
    """The inverse of `checkpoint_items`: state and frozen parameters; `like` gives the structure,
    `unsaved_params` the frozen parameters that are not in the checkpoint."""
    selected = set(tree.flatten(like.trainable))
    trainable, frozen = tree.split(items[params_item], lambda path: path in selected)
    optimizer = items["optimizer"]

    def restored(name: str, like: PyTree) -> PyTree:
        leaves = tree.flatten(optimizer[name])
        return jax.tree.unflatten(jax.tree.structure(like), [leaves[path] for path in tree.flatten(like)])

    state = TrainState(
        trainable=trainable,
        optimizer_state=restored("state", like.optimizer_state),
        batches=optimizer["batches"],
        updates=optimizer["updates"],
        guard=restored("guard", like.guard),
    )
    return state, tree.join(frozen, unsaved_params or {})
