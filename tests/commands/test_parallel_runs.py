"""The same run on every mesh and any number of processes: the same batches, and losses that differ by rounding only."""

import json
import signal
import time
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from command_runs import call, checkpoint, ended, metrics, run, run_two, steps, two_started
from made_once import made_once
from sweeps import some

from llama_jax.checkpoints.opening import ModelReference, open_model
from llama_jax.core import tree
from llama_jax.core.config import MeshConfig
from llama_jax.core.mesh import make_mesh
from llama_jax.model.config import ComputeConfig

STEPS = 20
TINY = ("--config", "tiny/pretrain", "--training.schedule_steps", 60, "--checkpoints.every", 20)
MOST = 2e-6
"""Largest relative difference of a loss."""


def mesh_of(data: int, fsdp: int, tensor: int) -> list[object]:
    return ["--mesh.data", data, "--mesh.fsdp", fsdp, "--mesh.tensor", tensor]


def assert_same_losses(run_dir: Path, reference: Path, steps: int = STEPS) -> None:
    found, expected = metrics(run_dir), metrics(reference)[:steps]
    assert [record["batch_hash"] for record in found] == [record["batch_hash"] for record in expected]
    assert len({record["batch_hash"] for record in found}) == steps
    losses = [np.array([record["loss"] for record in records]) for records in (found, expected)]
    differences = np.abs(losses[0] / losses[1] - 1)
    print("relative differences of the losses:", *(f"{difference:.1e}" for difference in differences))
    assert differences.max() <= MOST, differences


def train(run_dir: Path, *mesh: object) -> None:
    arguments = (*TINY, "--training.steps", STEPS, "--run_dir", run_dir, *mesh)
    assert call("pretrain", *arguments) == 0


def train_in(folder: Path, mesh: list[object]) -> None:
    train(folder / "run", *mesh)


@pytest.fixture(scope="session")
def eight_device_run(tmp_path_factory) -> Path:
    """Directory of 20 steps of the tiny run on a mesh of 2 x 2 x 2 devices."""
    make = partial(train_in, mesh=mesh_of(2, 2, 2))
    return made_once(tmp_path_factory, "eight_device_run", make) / "run"


@pytest.mark.slow
def test_data_fsdp_and_tensor_parallelism_together_give_the_losses_of_one_device(eight_device_run, tiny_run):
    assert_same_losses(eight_device_run, tiny_run)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [(1, 1, 8), (8, 1, 1), (1, 8, 1)], ids=lambda mesh: "x".join(map(str, mesh)))
def test_one_kind_of_parallelism_gives_the_losses_of_one_device(mesh, tiny_run, tmp_path):
    train(tmp_path / "run", *mesh_of(*mesh))
    assert_same_losses(tmp_path / "run", tiny_run)


LONG = ("--data.sequence_length", 512, "--training.steps", 6)
"""Eight times the context of the tiny run."""


@pytest.fixture(scope="session")
def long_run(tmp_path_factory) -> Path:
    """Directory of 6 steps on long rows, each of which is whole on its device."""
    return made_once(tmp_path_factory, "long_run", partial(train_in, mesh=[*LONG, "--mesh.fsdp", 8])) / "run"


@pytest.mark.parametrize("mesh", [{"sequence": 2, "fsdp": 2, "tensor": 2}, {"sequence": 8, "fsdp": 1}], ids=str)
@pytest.mark.slow
def test_rows_split_among_devices_give_the_losses_of_whole_ones(mesh, long_run, tmp_path):
    train(tmp_path / "run", *LONG, *(word for axis, size in mesh.items() for word in (f"--mesh.{axis}", size)))
    assert_same_losses(tmp_path / "run", long_run, steps=6)


@pytest.mark.slow
def test_gradients_reduced_in_stages_give_the_losses_of_one_device(tiny_run, tmp_path):
    train(tmp_path / "run", "--mesh.fsdp", 8, "--mesh.fsdp_stages", "[2, 4]")
    assert_same_losses(tmp_path / "run", tiny_run)


def train_on_two(run_dir: Path, last: int, xla_flags: str = "") -> list[str]:
    """Train to a step as two processes of four devices each; returns what each printed."""
    command = ("pretrain", *TINY, "--run_dir", run_dir, "--training.steps", last)
    results = run_two(*command, folder=run_dir.parent, xla_flags=xla_flags)
    assert [result.code for result in results] == [0, 0], results
    assert "process 0 of 2, 8 devices (cpu)" in results[0].output
    return [result.output for result in results]


def test_two_processes_begin_with_the_losses_of_one_and_keep_a_position_each(small_run, tmp_path):
    run_dir = tmp_path / "run"
    short = ("--training.steps", 6, "--training.schedule_steps", 30, "--training.evaluate_every", 6)
    results = run_two("pretrain", *small_run.arguments, *short, "--run_dir", run_dir, folder=tmp_path)
    assert [result.code for result in results] == [0, 0], results
    assert "process 0 of 2, 8 devices (cpu)" in results[0].output
    assert sorted(checkpoint(run_dir, 6)["positions"]) == [f"position-0000{rank}-of-00002.json" for rank in range(2)]
    assert_same_losses(run_dir, small_run.run_dir, steps=6)


@pytest.mark.slow
def test_a_run_goes_from_two_processes_to_one_and_back(tiny_run, tmp_path):
    run_dir = tmp_path / "run"
    train_on_two(run_dir, 7)
    train(run_dir, "--training.steps", 14)
    assert sorted(checkpoint(run_dir, 14)["positions"]) == ["position-00000-of-00001.json"]
    printed = train_on_two(run_dir, STEPS)
    assert "resuming from step 14" in printed[0] and "resuming" not in printed[1]
    assert_same_losses(run_dir, tiny_run)


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one_device(tiny_run, tmp_path):
    train_on_two(tmp_path / "run", STEPS, xla_flags="--xla_backend_optimization_level=3")
    assert_same_losses(tmp_path / "run", tiny_run)


@pytest.mark.parametrize("devices", some([4, 1], [1]))
def test_a_checkpoint_of_eight_devices_opens_with_the_same_bits_on_fewer(devices, eight_device_run):
    mesh = make_mesh(MeshConfig(), jax.devices()[:devices])
    with jax.set_mesh(mesh):
        opened = open_model(ModelReference(str(eight_device_run), STEPS), ComputeConfig(), say=pytest.fail)
        found = tree.fingerprints(tree.flatten(opened.params))
    saved = checkpoint(eight_device_run, STEPS)["leaves"]["params"]
    assert {path: leaf["fingerprint"] for path, leaf in saved.items()} == {
        path: np.asarray(pair).tolist() for path, pair in found.items()
    }
    kernel = opened.params["layers"]["attention"]["q_proj"]["kernel"]
    assert len(kernel.sharding.device_set) == devices


def last_line(output: str) -> dict:
    return json.loads(output.splitlines()[-1])


def on_two_processes(*command: object, folder: Path) -> dict:
    results = run_two(*command, folder=folder)
    assert [result.code for result in results] == [0, 0], results
    return last_line(results[0].output)


@pytest.mark.slow
def test_evaluation_agrees_on_one_device_and_eight(eight_device_run, tmp_path, capfd):
    command = ("evaluate", "--model", eight_device_run, "--json")
    assert call(*command) == 0
    eight = last_line(capfd.readouterr().out)
    one = last_line(run(*command, folder=tmp_path).output)
    assert one["tokens"] == eight["tokens"] > 1000
    assert one["bits_per_byte"] == pytest.approx(eight["bits_per_byte"], rel=1e-6)
    assert one["bits_per_byte"] == pytest.approx(metrics(eight_device_run)[-1]["validation_bits_per_byte"], rel=1e-6)


@pytest.mark.slow
def test_evaluation_agrees_on_eight_devices_and_two_processes(eight_device_run, tmp_path):
    two = on_two_processes("evaluate", "--model", eight_device_run, "--json", folder=tmp_path)
    assert two["bits_per_byte"] == pytest.approx(metrics(eight_device_run)[-1]["validation_bits_per_byte"], rel=1e-6)


def greedy(model: Path) -> list[object]:
    return ["generate", "--model", model, "--prompt", "The ", "--temperature", 0, "--max_new_tokens", 24, "--json"]


@pytest.mark.slow
def test_generation_agrees_on_one_device_and_eight(eight_device_run, tmp_path, capfd):
    assert call(*greedy(eight_device_run)) == 0
    eight = last_line(capfd.readouterr().out)
    one = last_line(run(*greedy(eight_device_run), folder=tmp_path).output)
    assert one["text"] == eight["text"]
    assert one["text"].startswith("The ") and one["tokens"] == 24


@pytest.mark.slow
def test_generation_agrees_on_eight_devices_and_two_processes(eight_device_run, tmp_path, capfd):
    assert call(*greedy(eight_device_run)) == 0
    eight = last_line(capfd.readouterr().out)
    assert on_two_processes(*greedy(eight_device_run), folder=tmp_path) == eight


@pytest.mark.slow
@pytest.mark.parametrize(("number", "rank"), [(signal.SIGTERM, 1), (signal.SIGINT, 0)])
def test_a_signal_to_one_process_makes_both_save_the_same_step(number, rank, tiny_run, tmp_path):
    run_dir = tmp_path / "run"
    command = ("pretrain", *TINY, "--run_dir", run_dir, "--training.steps", STEPS)
    with two_started(*command, folder=tmp_path) as job:
        while not (run_dir / "metrics.jsonl").exists() or len((run_dir / "metrics.jsonl").read_text()) == 0:
            assert job[0][0].poll() is None
            time.sleep(0.01)
        job[rank][0].send_signal(number)
        results = [ended(process, output) for process, output in job]
    assert [result.code for result in results] == [75, 75], results
    made = metrics(run_dir)[-1]["step"]
    assert all(f"interrupted: saved step {made} of 20;" in result.errors for result in results)
    assert made < STEPS and steps(run_dir) == [made]
    results = run_two(*command, folder=tmp_path)
    assert [result.code for result in results] == [0, 0], results
    assert_same_losses(run_dir, tiny_run)
