"""The same run on every mesh and any number of processes: the same batches, and losses that differ by rounding only."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from command_runs import call, checkpoint, metrics, run, run_two

from llama_jax.checkpoints.opening import open_model
from llama_jax.core import sharding, tree
from llama_jax.core.config import MeshConfig
from llama_jax.model.config import ComputeConfig

STEPS = 20
TINY = ("--config", "tiny/pretrain", "--training.schedule_steps", 60, "--checkpoints.every", 20)
MOST = 2e-6
"""Largest relative difference of a loss."""


def mesh_of(data: int, fsdp: int, tensor: int) -> list[object]:
    return ["--mesh.data", data, "--mesh.fsdp", fsdp, "--mesh.tensor", tensor]


def assert_same_losses(run_dir: Path, reference: Path) -> None:
    found, expected = metrics(run_dir), metrics(reference)[:STEPS]
    assert [record["batch_hash"] for record in found] == [record["batch_hash"] for record in expected]
    assert len({record["batch_hash"] for record in found}) == STEPS
    losses = [np.array([record["loss"] for record in records]) for records in (found, expected)]
    differences = np.abs(losses[0] / losses[1] - 1)
    print("relative differences of the losses:", *(f"{difference:.1e}" for difference in differences))
    assert differences.max() <= MOST, differences


def train(run_dir: Path, *mesh: object) -> None:
    arguments = (*TINY, "--training.steps", STEPS, "--run_dir", run_dir, *mesh)
    assert call("pretrain", *arguments) == 0


@pytest.fixture(scope="session")
def eight_device_run(tmp_path_factory) -> Path:
    """Directory of 20 steps of the tiny run on a mesh of 2 x 2 x 2 devices."""
    run_dir = tmp_path_factory.mktemp("eight_device_run") / "run"
    train(run_dir, *mesh_of(2, 2, 2))
    return run_dir


def test_data_fsdp_and_tensor_parallelism_together_give_the_losses_of_one_device(eight_device_run, tiny_run):
    assert_same_losses(eight_device_run, tiny_run)


@pytest.mark.parametrize(
    "mesh",
    [
        pytest.param((1, 1, 8)),
        pytest.param((8, 1, 1), marks=pytest.mark.slow),
        pytest.param((1, 8, 1), marks=pytest.mark.slow),
    ],
    ids=lambda mesh: "x".join(map(str, mesh)),
)
def test_one_kind_of_parallelism_gives_the_losses_of_one_device(mesh, tiny_run, tmp_path):
    train(tmp_path / "run", *mesh_of(*mesh))
    assert_same_losses(tmp_path / "run", tiny_run)


def test_a_run_goes_from_two_processes_to_one_and_back(tiny_run, tmp_path):
    run_dir = tmp_path / "run"
    command = ("pretrain", *TINY, "--run_dir", run_dir, "--training.steps")
    results = run_two(*command, 7, folder=tmp_path)
    assert [result.code for result in results] == [0, 0], results
    assert "process 0 of 2, 8 devices (cpu)" in results[0].output
    assert call(*command, 14) == 0
    results = run_two(*command, STEPS, folder=tmp_path)
    assert [result.code for result in results] == [0, 0], results
    assert "going on from step 14" in results[0].output and "going on" not in results[1].output
    assert_same_losses(run_dir, tiny_run)
    assert sorted(checkpoint(run_dir, 7)["positions"]) == [f"position-0000{rank}-of-00002.json" for rank in range(2)]
    assert sorted(checkpoint(run_dir, 14)["positions"]) == ["position-00000-of-00001.json"]


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one_device(tiny_run, tmp_path):
    arguments = (*TINY, "--training.steps", STEPS, "--run_dir", tmp_path / "run")
    results = run_two("pretrain", *arguments, folder=tmp_path)
    assert [result.code for result in results] == [0, 0], results
    assert_same_losses(tmp_path / "run", tiny_run)


@pytest.mark.parametrize("devices", [4, 1])
def test_a_checkpoint_of_eight_devices_opens_with_the_same_bits_on_fewer(devices, eight_device_run):
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:devices])
    with jax.set_mesh(mesh):
        opened = open_model(str(eight_device_run), ComputeConfig(), mesh, step=STEPS, tokenizer=None, say=pytest.fail)
        found = tree.fingerprints(tree.flatten(opened.params))
    saved = checkpoint(eight_device_run, STEPS)["leaves"]["params"]
    assert {path: leaf["fingerprint"] for path, leaf in saved.items()} == {
        path: np.asarray(pair).tolist() for path, pair in found.items()
    }
    kernel = opened.params["layers"]["attention"]["q_proj"]["kernel"]
    assert len(kernel.sharding.device_set) == devices


def evaluation(output: str) -> dict:
    return json.loads(output.splitlines()[-1])


def test_evaluation_agrees_on_one_device_eight_and_two_processes(eight_device_run, tmp_path, capfd):
    command = ("evaluate", "--model", eight_device_run, "--json")
    assert call(*command) == 0
    eight = evaluation(capfd.readouterr().out)
    one = evaluation(run(*command, folder=tmp_path).output)
    results = run_two(*command, folder=tmp_path)
    assert [result.code for result in results] == [0, 0], results
    two = evaluation(results[0].output)
    assert one["tokens"] == eight["tokens"] == two["tokens"] > 1000
    for other in (eight, two):
        assert other["bits_per_byte"] == pytest.approx(one["bits_per_byte"], rel=1e-6)
    assert one["bits_per_byte"] == pytest.approx(metrics(eight_device_run)[-1]["validation_bits_per_byte"], rel=1e-6)


def test_generation_agrees_on_one_device_eight_and_two_processes(eight_device_run, tmp_path, capfd):
    command = ("generate", "--model", eight_device_run, "--prompt", "The ", "--temperature", 0, "--max_new_tokens", 24)
    assert call(*command, "--json") == 0
    eight = evaluation(capfd.readouterr().out)
    one = evaluation(run(*command, "--json", folder=tmp_path).output)
    results = run_two(*command, "--json", folder=tmp_path)
    assert [result.code for result in results] == [0, 0], results
    two = evaluation(results[0].output)
    assert one["text"] == eight["text"] == two["text"]
    assert one["text"].startswith("The ") and one["tokens"] == 24
