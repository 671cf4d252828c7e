"""A run whose directory is in an object store, killed and resumed."""

import json

import pytest
from etils import epath
from object_store import object_store
from toy_runs import STEPS, KilledError, Toy, killed_before, steps

from llama_jax.core.recording.metrics import read_metrics


@pytest.mark.slow
def test_a_run_in_a_bucket_that_is_killed_is_the_uninterrupted_run() -> None:
    with object_store() as root:
        runs = [Toy(epath.Path(f"{root}/{name}")) for name in ("killed", "whole")]
        with pytest.raises(KilledError):
            runs[0].train(killed_before(8))
        assert steps(runs[0]) == [3, 6] and len(runs[0].metrics()) == 6
        for toy in runs:
            assert toy.train()
        manifests = [json.loads((toy.path / "checkpoints" / "8" / "manifest.json").read_text()) for toy in runs]
        assert runs[0].metrics() == runs[1].metrics() and len(runs[0].metrics()) == STEPS
        assert manifests[0]["leaves"] == manifests[1]["leaves"]
        assert read_metrics(runs[0].path / "metrics.jsonl")[-1]["wall_seconds"]["down"] > 0
