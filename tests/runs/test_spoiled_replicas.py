"""A run on several devices of which one keeps a wrong bit ends, before it saves it."""

import dataclasses

import pytest
from faults import flip_a_bit
from toy_runs import ROWS, STEPS, Toy, steps

from llama_jax.core import tree
from llama_jax.core.replicas import ReplicasDifferError
from llama_jax.training.config import TrainingConfig
from llama_jax.training.state import TrainState

TRAINING = TrainingConfig(steps=STEPS, batch_size=ROWS, warmup_steps=2, evaluate_every=2, fingerprint_every=3)
PATH = "layers/mlp/up_proj/kernel"


def spoil(state: TrainState) -> None:
    if state.batches == 4:
        flip_a_bit(tree.flatten(state.trainable)[PATH], device=1, byte=2)


@pytest.mark.slow
def test_a_run_ends_where_a_device_keeps_something_else(tmp_path) -> None:
    toy = Toy(tmp_path, training=TRAINING, replicas=2, when_evaluated=spoil)
    with pytest.raises(ReplicasDifferError, match=r"^step 6: .* from step 3 or before \(--resume N\)") as raised:
        toy.train()
    assert f"in state/trainable/{PATH}: device 0 of process 0, device 1 of process 0; a device" in str(raised.value)
    assert steps(toy) == [3]


@pytest.mark.slow
def test_without_comparing_it_would_be_saved(tmp_path) -> None:
    toy = Toy(tmp_path, training=dataclasses.replace(TRAINING, fingerprint_every=0), replicas=2, when_evaluated=spoil)
    assert toy.train()
    assert steps(toy) == [3, 6, 8]
