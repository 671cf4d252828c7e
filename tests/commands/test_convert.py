"""`convert` and back again: the same bits, the same text, and nothing left behind when something is wrong."""

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path

import command_runs
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from llama_jax.checkpoints.conversion_target import REPORT
from llama_jax.checkpoints.formats.weights import tensors_of
from llama_jax.checkpoints.weight_reading import open_weights

FORMATS = ("hf", "gguf", "meta", "llama2c")


def convert(source: object, target: object, kind: str, *arguments: object) -> dict:
    """Convert, and the report that was written."""
    assert command_runs.call("convert", "--source", source, "--target", target, "--format", kind, *arguments) == 0
    target = Path(str(target))
    report = target / REPORT if target.is_dir() else target.with_name(f"{target.name}.{REPORT}")
    return json.loads(report.read_text())


def assert_same_weights(first: object, second: object, *, meta: bool) -> None:
    """Every tensor equal, bit for bit."""
    one, other = (open_weights(str(path), step=None, say=print) for path in (first, second))
    # Meta's params.json does not know the context length.
    context = other.config.context_length if meta else one.config.context_length
    assert dataclasses.replace(one.config, context_length=context) == other.config
    for name, layer in tensors_of(one.config):
        np.testing.assert_array_equal(one.read(name, layer), other.read(name, layer), err_msg=name.ours)


@pytest.fixture(scope="module")
def exported(tiny_run, tmp_path_factory) -> dict[str, Path]:
    """The run in every format."""
    folder = tmp_path_factory.mktemp("exported")
    paths = {}
    for kind in FORMATS:
        if kind == "meta":
            pytest.importorskip("torch")
        paths[kind] = (
            folder / kind / ("model.gguf" if kind == "gguf" else "model.bin" if kind == "llama2c" else "model")
        )
        paths[kind].parent.mkdir()
        report = convert(tiny_run, paths[kind], kind)
        assert report["check"]["max_logit_difference"] == 0
        assert report["check"]["argmax_agreement"] == 1
        assert (report["check"]["tokenizer"]["control_tokens"], report["check"]["tokenizer"]["notes"]) == (2, [])
        assert report["check"]["source_loss"] == report["check"]["target_loss"] < report["check"]["uniform_loss"]
    return paths


@pytest.mark.parametrize("kind", FORMATS)
def test_there_and_back_is_bit_exact(tiny_run, exported, kind, tmp_path) -> None:
    convert(exported[kind], tmp_path / "back", "orbax")
    assert_same_weights(tiny_run, tmp_path / "back", meta=kind == "meta")


def test_a_converted_model_writes_what_the_run_writes(tiny_run, exported, capfd) -> None:
    texts = []
    for model in (tiny_run, exported["gguf"]):
        arguments = ("--prompt", "Return the ", "--temperature", 0, "--max_new_tokens", 24, "--json")
        assert command_runs.call("generate", "--model", model, *arguments) == 0
        texts.append(json.loads(capfd.readouterr().out.splitlines()[-1])["text"])
    assert texts[0] == texts[1]


def test_a_coarser_type_is_measured(tiny_run, tmp_path) -> None:
    report = convert(tiny_run, tmp_path / "half", "hf", "--dtype", "bfloat16")
    assert report["target_dtypes"] == ["bfloat16"]
    assert 0 < report["check"]["mean_logit_difference"] < 0.02 * report["check"]["logit_standard_deviation"]
    assert report["bytes"] < 0.6 * 4 * report["parameters"] + 200_000


def changed(directory: Path, copy: Path, change: Callable[[str, np.ndarray], None]) -> Path:
    """A copy of a directory of Hugging Face, every tensor changed in place."""
    copy.mkdir()
    for path in directory.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    tensors = load_file(copy / "model.safetensors")
    for name, array in tensors.items():
        change(name, array)
    save_file(tensors, copy / "model.safetensors")
    return copy


def test_a_source_that_predicts_nonsense_is_not_proved_by_a_copy_of_it(tiny_run, tmp_path, capfd) -> None:
    """Logits that are equal say nothing where both are those of other bytes than weights."""

    def blow_up(name: str, array: np.ndarray) -> None:
        array *= 1e9 if name == "model.norm.weight" else 1

    convert(tiny_run, tmp_path / "whole", "hf", "--no_check", "true")
    broken = changed(tmp_path / "whole", tmp_path / "broken", blow_up)
    arguments = ("--source", broken, "--target", tmp_path / "out", "--format", "hf")
    assert command_runs.call("convert", *arguments) == 1
    assert re.search(r"out: not written, .*broken predicts text at a loss of \d\S+ nats", capfd.readouterr().err)
    assert not (tmp_path / "out").exists()
    assert command_runs.call("convert", *arguments, "--no_check", "true") == 0


def test_a_result_that_is_another_model_is_not_kept(tiny_run, exported, tmp_path, capfd) -> None:
    """The same model with one huge weight in each block of 32, which leaves nothing of the others in 8 bits."""

    def break_blocks(name: str, array: np.ndarray) -> None:
        if "gate_proj" in name or "up_proj" in name:
            array[:, ::32] *= 1e4
        if "post_attention_layernorm" in name:
            array[::32] /= 1e4

    broken = changed(exported["hf"], tmp_path / "broken", break_blocks)
    out = tmp_path / "out"
    out.mkdir()
    arguments = ("--source", broken, "--target", out / "model.gguf", "--format", "gguf", "--dtype", "q8_0")
    assert command_runs.call("convert", *arguments) == 1
    assert "not written, the result differs" in capfd.readouterr().err
    assert list(out.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--source", "nowhere", "--format", "hf"), "nowhere: no such file or directory"),
        (("--format", "hf", "--dtype", "q8_0"), "--dtype q8_0: only --format gguf"),
        (("--format", "llama2c", "--dtype", "bfloat16"), "llama2c's format is float32"),
        (("--format", "hg"), "hg"),
        (("--format", "hf", "--step", "7"), "no checkpoint step 7"),
        (("--format", "hf", "--target", "."), "exists"),
    ],
)
def test_mistakes_leave_nothing_behind(tiny_run, tmp_path, monkeypatch, capfd, arguments, message) -> None:
    monkeypatch.chdir(tmp_path)
    source = () if "--source" in arguments else ("--source", tiny_run)
    target = () if "--target" in arguments else ("--target", "out")
    assert command_runs.call("convert", *source, *target, *arguments) == 2
    assert message in capfd.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_tokenizer_given_takes_the_place_of_the_tokenizer_alone(exported, tmp_path) -> None:
    """What else travels with the weights stays, here the tables of llama2.c that nothing else has."""
    given = exported["llama2c"].with_name("tokenizer.bin")
    convert(exported["llama2c"], tmp_path / "run", "orbax", "--tokenizer", given)
    convert(tmp_path / "run", tmp_path / "model.bin", "llama2c")
    assert (tmp_path / "model.bin").read_bytes() == exported["llama2c"].read_bytes()
    assert (tmp_path / "tokenizer.bin").read_bytes() == given.read_bytes()


def test_overwriting_takes_the_place_of_what_convert_wrote_alone(tiny_run, tmp_path, capfd) -> None:
    mine = tmp_path / "runs" / "other" / "keep.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("precious")
    (tmp_path / "runs" / "a").symlink_to(tiny_run)
    fixed = ("--no_check", "true", "--overwrite", "true")
    convert(tmp_path / "runs" / "a", tmp_path / "out", "orbax", *fixed)
    convert(tmp_path / "runs" / "a", tmp_path / "out", "hf", *fixed)
    assert not (tmp_path / "out" / "checkpoints").exists()
    for target, reason in (
        ("runs/a", "holds"),
        ("runs", "is not replaced, for convert did not write it"),
        ("out", "for notes.txt is not of convert"),
    ):
        (tmp_path / "out" / "notes.txt").write_text("mine")
        source = ("convert", "--source", tmp_path / "runs" / "a", "--format", "hf")
        assert command_runs.call(*source, "--target", tmp_path / target, *fixed) == 2
        (line,) = capfd.readouterr().err.splitlines()
        assert line.startswith(f"error: --target {tmp_path / target}: ") and reason in line
    assert mine.read_text() == "precious" and (tmp_path / "out" / "model.safetensors").exists()
    assert (tiny_run / "config.yaml").exists()
