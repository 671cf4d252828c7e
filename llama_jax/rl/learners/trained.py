"""A model of a run that trains: its state, and how checkpoints keep it. A run may have several; each has a program of
its own."""

from dataclasses import dataclass
from typing import NamedTuple

from llama_jax.core import tree
from llama_jax.core.arrays import PyTree
from llama_jax.runs.methods import Method
from llama_jax.training.checkpoint_items import checkpoint_items, from_checkpoint_items
from llama_jax.training.program import Program
from llama_jax.training.state import TrainState


class Trained(NamedTuple):
    """A model between two updates."""

    state: TrainState
    frozen: PyTree

    @property
    def params(self) -> PyTree:
        """All of them."""
        return tree.join(self.state.trainable, self.frozen)


@dataclass(frozen=True)
class Role:
    """What a model is in a run."""

    program: Program
    method: Method
    unsaved: PyTree
    """Parameters that checkpoints do not hold: the arrays of a base, which roles share."""
    prefix: str = ""
    """Of the names of its items in a checkpoint; that of the policy is empty, so that it is opened as any model."""

    def items(self, trained: Trained) -> dict[str, PyTree]:
        """Its items of a checkpoint."""
        method = self.method
        items = checkpoint_items(trained.state, trained.frozen, method.params_item, method.is_saved)
        return {self.prefix + name: item for name, item in items.items()}

    def targets(self) -> dict[str, PyTree]:
        """Shapes of these."""
        return self.items(Trained(self.program.state_shapes, self.program.frozen_shapes))

    def restored(self, items: dict[str, PyTree]) -> Trained:
        """The inverse of `items`."""
        own = {name.removeprefix(self.prefix): item for name, item in items.items() if name.startswith(self.prefix)}
        return Trained(*from_checkpoint_items(own, self.program.state_shapes, self.unsaved, self.method.params_item))

    def begun(self, state: TrainState, frozen: PyTree) -> Trained:
        """From what its program gave at the beginning; what is not saved is shared with the other roles."""
        shared = tree.flatten(self.unsaved)
        leaves = {path: shared.get(path, leaf) for path, leaf in tree.flatten(frozen).items()}
        return Trained(state, tree.unflatten(leaves))
