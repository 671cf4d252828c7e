"""`sft` and `lora` through their real commands: what they learn and keep, and what an interruption does to them."""

import itertools
import json
import random
import re
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import pytest
from command_runs import call, checkpoint, copy_until, ended, metrics, run, run_two, started, steps
from made_once import made_once
from test_restart import wait_for_steps

from llama_jax import load
from llama_jax.checkpoints.opening import ModelReference, open_params
from llama_jax.core import tree
from llama_jax.core.config import MeshConfig
from llama_jax.core.mesh import make_mesh
from llama_jax.data.instructions.chat import encode_chat
from llama_jax.model.config import ComputeConfig

STEPS = 12


@dataclass(frozen=True)
class Tuning:
    """A fine-tuning run that was not interrupted."""

    command: str
    arguments: list[object]
    run_dir: Path


@pytest.fixture(scope="session")
def instructions(tmp_path_factory) -> Path:
    return made_once(tmp_path_factory, "instructions", _write_instructions) / "instructions.json"


def _write_instructions(folder: Path) -> None:
    chosen = random.Random(0)
    words = ["red", "blue", "old", "cat", "dog", "sea", "sun", "map"]
    rows = []
    for number in range(60):
        said = chosen.sample(words, 3)
        rows.append({"instruction": f"Say {number} words.", "input": " ".join(said), "output": " ".join(said[::-1])})
    (folder / "instructions.json").write_text(json.dumps(rows))


def arguments_of(model: Path, instructions: Path, **changes: object) -> list[object]:
    settings = {
        "model": model,
        "epochs": "null",
        "data.source": instructions,
        "data.template": "plain",
        "data.sequence_length": 128,
        "data.validation_examples": 8,
        "training.steps": STEPS,
        "training.batch_size": 8,
        "training.peak_learning_rate": 0.01,
        "training.evaluate_every": 4,
        "samples.held_out": 2,
        "samples.max_new_tokens": 8,
        "checkpoints.every": 3,
        "tracking.tensorboard": "false",
    } | changes
    return [part for name, value in settings.items() for part in (f"--{name}", value)]


def tuned_by(tmp_path_factory, name: str, command: str, arguments: list[object]) -> Tuning:
    """A run of the command in the folder of that name."""

    def make(folder: Path) -> None:
        result = run(command, *arguments, "--run_dir", folder / "run", folder=folder)
        assert result.code == 0, result

    return Tuning(command, arguments, made_once(tmp_path_factory, name, make) / "run")


@pytest.fixture(scope="session")
def tuned_sft(small_run, instructions, tmp_path_factory) -> Tuning:
    return tuned_by(tmp_path_factory, "tuned_sft", "sft", arguments_of(small_run.run_dir, instructions))


@pytest.fixture(scope="session")
def tuned_lora(small_run, instructions, tmp_path_factory) -> Tuning:
    arguments = arguments_of(small_run.run_dir, instructions, **{"lora.dropout": 0.1})
    return tuned_by(tmp_path_factory, "tuned_lora", "lora", arguments)


@pytest.fixture(params=["sft", "lora"])
def tuned(request) -> Tuning:
    return request.getfixturevalue(f"tuned_{request.param}")


def test_held_out_loss_falls_and_answers_are_kept(tuned):
    records = metrics(tuned.run_dir)
    evaluated = [record for record in records if "validation_loss" in record]
    assert [record["step"] for record in evaluated] == [4, 8, 12]
    last = evaluated[-1]
    assert last["validation_gain"] > 3 * last["validation_gain_standard_error"] > 0
    before = np.array(json.loads((tuned.run_dir / "losses_before.json").read_text()))
    assert before.shape == (8,)
    samples = [json.loads(line) for line in (tuned.run_dir / "samples.jsonl").read_text().splitlines()]
    assert [sample["step"] for sample in samples] == [0, 4, 8, 12]
    assert all(len(sample["samples"]) == 2 for sample in samples)
    assert samples[0]["samples"][0]["prompt"] == samples[-1]["samples"][0]["prompt"]
    assert samples[0]["samples"] != samples[-1]["samples"]


def test_a_checkpoint_of_sft_holds_all_parameters(tuned_sft, small_run):
    leaves = checkpoint(tuned_sft.run_dir, STEPS)["leaves"]
    base = checkpoint(small_run.run_dir, 30)["leaves"]["params"]
    assert set(leaves) == {"params", "optimizer"} and set(leaves["params"]) == set(base)


def test_a_checkpoint_of_lora_holds_the_adapter_alone(tuned_lora):
    leaves = checkpoint(tuned_lora.run_dir, STEPS)["leaves"]
    assert set(leaves) == {"adapter", "optimizer"}
    module = "lora/layers/attention"
    expected = {f"{module}/{name}/{part}" for name in ("q_proj", "v_proj") for part in ("a", "b", "scale")}
    assert set(leaves["adapter"]) == expected
    moments = [path for path in leaves["optimizer"] if "/mu/" in path]
    assert len(moments) == 4 and all(path.endswith(("/a", "/b")) for path in moments)


def opened_on(devices: int, path: Path):
    mesh = make_mesh(MeshConfig(), jax.devices()[:devices])
    with jax.set_mesh(mesh):
        return open_params(ModelReference(str(path)), ComputeConfig(), say=pytest.fail)


def test_the_base_of_an_adapter_is_bit_for_bit_what_it_was(tuned_lora, small_run):
    base, opened = opened_on(1, small_run.run_dir).params, opened_on(1, tuned_lora.run_dir).params
    assert set(opened) == {*base, "lora"}
    jax.tree.map(np.testing.assert_array_equal, {name: opened[name] for name in base}, base)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(opened["lora"]))


def assert_same_run(tuning: Tuning, run_dir: Path) -> None:
    assert metrics(run_dir) == metrics(tuning.run_dir)
    assert checkpoint(run_dir, STEPS) == checkpoint(tuning.run_dir, STEPS)
    for file in ("samples.jsonl", "losses_before.json"):
        assert (run_dir / file).read_text() == (tuning.run_dir / file).read_text()


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_is_the_uninterrupted_run(tuned, tmp_path):
    chance = random.Random(5)
    output = tmp_path / "printed"
    kills = runs = 0
    while kills < 3:
        runs += 1
        line = (tuned.command, *tuned.arguments, "--run_dir", tmp_path / f"run_{runs}")
        code = -signal.SIGKILL
        while code and kills < 3:
            with started(*line, output=output) as process:
                if wait_for_steps(tmp_path / f"run_{runs}", output, process, count=chance.randint(2, 5)):
                    time.sleep(chance.uniform(0, 0.3))
                process.kill()
                code = ended(process, output).code
            assert code in (0, -signal.SIGKILL)
            kills += code != 0
        if code:
            result = run(*line, folder=tmp_path)
            assert result.code == 0, result
        assert_same_run(tuned, tmp_path / f"run_{runs}")


def test_the_best_checkpoint_is_kept(tuned):
    losses = {r["step"]: r["validation_loss"] for r in metrics(tuned.run_dir) if "validation_loss" in r}
    best = min(losses, key=losses.__getitem__)
    assert best in steps(tuned.run_dir)


def adapter_of(run_dir: Path) -> dict[str, np.ndarray]:
    params = opened_on(1, run_dir).params
    return {path: np.asarray(leaf) for path, leaf in tree.flatten(params["lora"]).items()}


@pytest.fixture(scope="session")
def reference_adapter(small_run, instructions, tmp_path_factory) -> tuple[list[object], dict[str, np.ndarray]]:
    """Of a run on one device without accumulation and dropout."""
    more = {"lora.dropout": 0, "training.peak_learning_rate": 1e-3, "training.batch_size": 32}
    arguments = arguments_of(small_run.run_dir, instructions, **more)
    return arguments, adapter_of(tuned_by(tmp_path_factory, "reference_adapter", "lora", arguments).run_dir)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh", "microbatches"),
    list(itertools.product([(2, 2, 2), (1, 8, 1)], [1, 2, 4])),
    ids=lambda value: "x".join(map(str, value)) if isinstance(value, tuple) else str(value),
)
def test_meshes_and_accumulation_give_the_same_adapter(mesh, microbatches, reference_adapter, tmp_path):
    arguments, expected = reference_adapter
    settings = dict(zip(("data", "fsdp", "tensor"), mesh, strict=True))
    parallel = [part for name, size in settings.items() for part in (f"--mesh.{name}", size)]
    line = ("lora", *arguments, "--run_dir", tmp_path / "run", "--training.microbatches", microbatches, *parallel)
    assert call(*line) == 0
    found = adapter_of(tmp_path / "run")
    differences = {path: float(np.abs(found[path] - expected[path]).max()) for path in expected}
    print(f"largest difference of the adapters: {max(differences.values()):.1e}")
    assert max(differences.values()) < 1e-5, differences
    assert np.abs(expected["layers/attention/q_proj/b"]).max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "count", "share"),
    [
        ("lora_alpaca_7b", "4,194,304", "0.0622%"),
        ("lora_alpaca_7b_official", "16,777,216", "0.2490%"),
    ],
)
def test_a_dry_run_counts_the_parameters_that_train(config, count, share, capfd):
    small = ("--training.batch_size", 8, "--training.microbatches", 1, "--data.sequence_length", 512)
    assert call("lora", "--config", config, "--dry_run", *small) == 0
    printed = capfd.readouterr().out
    assert f"6,738,415,616 parameters, {count} train ({share} of the model's)" in printed
    assert "bytes a device" in printed


@pytest.mark.slow
@pytest.mark.parametrize("command", ["sft", "lora"])
def test_the_tiny_configs_train(command, tiny_run, tmp_path):
    result = run(
        command, "--config", f"tiny/{command}", "--model", tiny_run, "--run_dir", tmp_path / "run", folder=tmp_path
    )
    assert result.code == 0, result
    assert "before:" in result.output and "step 20:" in result.output
    assert metrics(tmp_path / "run")[-1]["validation_gain"] > 0.3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--lora.target_modules", "[query]"], "lora.target_modules: 'query' matches no Linear"),
        (["--epochs", "0"], "--epochs 0.0: must be a number greater than 0"),
        (["--size", "llama_7b"], "--size llama_7b: has vocab_size 32000"),
        (["--size", "llama_8b"], "model.size: unknown size 'llama_8b'; did you mean"),
        (["--training.trainable", "norm"], "training.trainable: is for sft"),
        (["--lora.modules_to_save", "[head]"], "lora.modules_to_save: got"),
    ],
    ids=lambda value: value if isinstance(value, str) else "_".join(value),
)
def test_mistakes_are_named_in_one_line(change, message, small_run, instructions, tmp_path, capfd):
    line = ("lora", *arguments_of(small_run.run_dir, instructions), "--run_dir", tmp_path / "run", *change)
    assert call(*line) == 2
    errors = capfd.readouterr().err.strip().splitlines()
    assert len(errors) == 1 and message in errors[0], errors


def test_an_adapter_is_not_trained_on_another(tuned_lora, instructions, tmp_path, capfd):
    line = ("lora", *arguments_of(tuned_lora.run_dir, instructions), "--run_dir", tmp_path / "run")
    assert call(*line) == 2
    assert "is an adapter over a base; merge the two first" in capfd.readouterr().err


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_an_adapter_goes_on_over_its_base_alone_wherever_that_is(tuned_lora, small_run, tmp_path, capfd):
    """Not over what its base has become, which would be another scale of what was learned, without a word."""
    adapter = copy_until(tuned_lora.run_dir, tmp_path / "adapter", [9])
    other = copy_until(small_run.run_dir, tmp_path / "other", [27])
    before = files_of(adapter)
    line = ("lora", *tuned_lora.arguments, "--run_dir", adapter)
    assert call(*line, "--model", other) == 2
    said = capfd.readouterr()
    assert f"error: --run_dir {adapter}: belongs to a base other than {other}: embedding/table has other" in said.err
    assert f"note: the adapter needs step 27 of {other}, which that run may remove when it goes on" in said.out
    assert call(*line, "--step", 24) == 2  # of its own base, without which it began
    assert f"belongs to step 30 of {small_run.run_dir}, and this is step 24" in capfd.readouterr().err
    assert call(*line, "--model", tmp_path / "nowhere") == 2
    assert "nowhere: no such file or directory" in capfd.readouterr().err
    assert files_of(adapter) == before
    config = adapter / "config.yaml"
    config.write_text(config.read_text().replace("alpha: 16.0", "alpha: 32.0"))
    assert call(*line, "--lora.alpha", 32) == 2
    assert "lora.alpha is 16.0 in its checkpoints, not 32.0" in capfd.readouterr().err
    config.write_bytes(before["config.yaml"])
    moved = copy_until(small_run.run_dir, tmp_path / "moved", [30])
    assert call(*line, "--model", moved, "--training.steps", 9) == 0
    assert "is already at step 9" in capfd.readouterr().out


@pytest.fixture
def at():
    """Sets the time zone, and gives the day there. Two that are 26 hours apart stand for two days."""
    with pytest.MonkeyPatch.context() as patch:

        def at(zone: str) -> str:
            patch.setenv("TZ", zone)
            time.tzset()
            return time.strftime("%d %b %Y")

        yield at
    time.tzset()


@pytest.mark.slow
def test_a_run_keeps_the_date_that_it_began_with(tuned_lora, tmp_path, at, capfd):
    run_dir = copy_until(tuned_lora.run_dir, tmp_path / "run", [9])
    line = ("lora", *tuned_lora.arguments, "--run_dir", run_dir, "--training.steps", 9)
    days = []
    for zone in ("XXX-14", "XXX+12"):
        days.append(at(zone))
        assert call(*line) == 0
        assert "is already at step 9" in capfd.readouterr().out
    assert days[0] != days[1]
    assert call(*line, "--data.template_date", "2001-02-03") == 2
    assert 'data.template_date is "20' in capfd.readouterr().err


TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if loop.first %}{{ strftime_now('%d %b %Y') + '\n' }}{% endif %}"
    "{{ message.content + (eos_token if message.role == 'assistant' else '\n') }}{% endfor %}"
)


def dated_arguments(small_run, instructions: Path, folder: Path) -> list[object]:
    shutil.copy(small_run.tokenizer, folder / "tokenizer.model")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    changes = {"tokenizer": folder / "tokenizer.model", "data.template": "auto", "samples.held_out": 0}
    return arguments_of(small_run.run_dir, instructions, **changes, **{"checkpoints.every": 2})


@pytest.mark.slow
def test_a_run_goes_on_the_next_day_with_its_date(small_run, instructions, tmp_path, at, capfd):
    line = ("sft", *dated_arguments(small_run, instructions, tmp_path), "--run_dir", tmp_path / "run")
    line = (*line, "--training.schedule_steps", 4, "--training.steps")
    day = at("XXX-14")
    assert call(*line, 2) == 0
    assert at("XXX+12") != day
    assert call(*line, 4) == 0
    assert "going on from step 2\n" in capfd.readouterr().out
    for kind, name in {"hf": "model", "gguf": "model.gguf"}.items():
        assert call("convert", "--source", tmp_path / "run", "--target", tmp_path / name, "--format", kind) == 0
        tokenizer = load(str(tmp_path / name))[2]
        assert day in tokenizer.decode(encode_chat(tokenizer, [{"role": "user", "content": "a"}]))


@pytest.mark.slow
def test_hosts_on_both_sides_of_midnight_train_on_the_same_date(small_run, instructions, tmp_path):
    line = ("sft", *dated_arguments(small_run, instructions, tmp_path), "--training.steps", 2)
    for result in run_two(*line, "--run_dir", tmp_path / "two", folder=tmp_path, zones=("XXX-14", "XXX+12")):
        assert result.code == 0, result
    config = (tmp_path / "two" / "config.yaml").read_text()
    day = re.findall("template_date: '(.*)'", config)[0]
    result = run(*line, "--run_dir", tmp_path / "one", "--data.template_date", day, folder=tmp_path, devices=8)
    assert result.code == 0, result
    hashes = [[record["batch_hash"] for record in metrics(tmp_path / name)] for name in ("one", "two")]
    assert hashes[0] == hashes[1]
    template = (tmp_path / "two" / "checkpoints" / "2" / "model" / "chat_template.jinja").read_text()
    assert time.strftime("%d %b %Y", time.strptime(day, "%Y-%m-%d")).split()[0] in template


@pytest.mark.slow
def test_epochs_become_steps(small_run, instructions, tmp_path):
    # The dropout of another test, so that the step is compiled already.
    changes = {"epochs": 1.5, "data.packing": "none", "checkpoints.every": 100, "lora.dropout": 0.1}
    arguments = arguments_of(small_run.run_dir, instructions, **changes)
    result = run("lora", *arguments, "--run_dir", tmp_path / "run", folder=tmp_path)
    assert result.code == 0, result
    # 52 examples in batches of 8 are 7 steps an epoch, and half of another 4.
    assert metrics(tmp_path / "run")[-1]["step"] == 11
    assert metrics(tmp_path / "run")[-1]["epochs"] == {str(instructions): pytest.approx(84 / 52)}


@pytest.mark.slow
def test_a_run_without_a_model_goes_on_with_the_one_it_began_with(small_run, instructions, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(small_run.run_dir, tmp_path / "runs" / "base")
    command = ("lora", *arguments_of(small_run.run_dir, instructions)[2:], "--run_dir", "runs/lora")
    assert call(*command, "--training.steps", 6, "--training.schedule_steps", 12) == 0
    assert call(*command, "--training.schedule_steps", 12) == 0  # by now the newest run is the adapter's own
    assert metrics(tmp_path / "runs" / "lora")[-1]["step"] == 12


def test_the_preview_shows_what_bears_loss(small_run, instructions, capfd):
    arguments = arguments_of(small_run.run_dir, instructions, **{"data.packing": "none"})
    assert call("preview lora", *arguments, "--examples", 1, "--characters", 300, "--json") == 0
    shown = capfd.readouterr().out
    report = json.loads(shown.splitlines()[-1])
    (pieces,) = [segment["pieces"] for segment in report["examples_shown"][0]["segments"]]
    (asked, _), (answer, bears_loss) = pieces
    rows = {f"{row['instruction']}\n{row['input']}": row["output"] for row in json.loads(instructions.read_text())}
    assert bears_loss and answer == f"{rows[asked.removeprefix('<s>')]}</s>"
    assert f"⟦{answer}⟧" in shown
    assert report["sources"][str(instructions)]["records"] == 60 and report["held_out_examples"] == 8
    assert 0 < report["loss_share"] < 1
