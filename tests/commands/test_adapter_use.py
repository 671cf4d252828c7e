"""Adapters through the real commands: continued side by side, measured, merged, taken out, and written for PEFT."""

import json
from pathlib import Path
from typing import Any

import command_runs
import jax
import numpy as np
import pytest
from adapter_runs import random_adapter, save_adapter_run
from made_once import made_once
from safetensors.numpy import load_file

from llama_jax import inference, load
from llama_jax.checkpoints.formats.weights import tensors_of
from llama_jax.checkpoints.opening import ModelReference, open_params
from llama_jax.checkpoints.weight_reading import open_weights
from llama_jax.core.config import MeshConfig
from llama_jax.core.mesh import make_mesh
from llama_jax.model.config import ComputeConfig

GREEDY = ("--temperature", 0, "--max_new_tokens", 12)
KINDS: dict[str, dict[str, Any]] = {
    "values": {"target_modules": ("q_proj", "v_proj"), "rank": 3, "seed": 1, "size": 0.2},
    "dora": {"target_modules": ("o_proj", "down_proj"), "rank": 5, "seed": 2, "size": 0.1, "dora": True},
}


def last_line(capfd, *arguments: object) -> dict:
    assert command_runs.call(*arguments, "--json") == 0
    return json.loads(capfd.readouterr().out.strip().splitlines()[-1])


@pytest.fixture(scope="session")
def adapters(tiny_run, tmp_path_factory) -> dict[str, Path]:
    """Runs of lora over the tiny run."""

    def make(folder: Path) -> None:
        with jax.set_mesh(make_mesh(MeshConfig())):
            base = open_params(ModelReference(str(tiny_run)), ComputeConfig(), say=pytest.fail)
        for name, kind in KINDS.items():
            save_adapter_run(folder / name, base.identity, random_adapter(base.model.config, **kind))

    folder = made_once(tmp_path_factory, "adapters", make)
    return {name: folder / name for name in KINDS}


def listed(*paths: Path) -> str:
    return f"[{', '.join(map(str, paths))}]"


@pytest.mark.slow
def test_each_prompt_is_continued_by_each_adapter_in_one_batch(tiny_run, adapters, tmp_path, capfd) -> None:
    prompts = ["Return the ", "The value of"]
    (tmp_path / "prompts.txt").write_text("\n".join(prompts))
    both = (*GREEDY, "--prompts", tmp_path / "prompts.txt", "--adapters", listed(*adapters.values()))
    together = last_line(capfd, "generate", "--model", tiny_run, *both)
    alone = [
        last_line(capfd, "generate", "--model", tiny_run, *GREEDY, "--prompt", prompt, "--adapters", listed(path))
        for prompt in prompts
        for path in adapters.values()
    ]
    assert together["texts"] == [answer["text"] for answer in alone]
    assert together["adapters"] == [f"{path} step 5" for path in adapters.values()] * 2
    plain = last_line(capfd, "generate", "--model", tiny_run, *GREEDY, "--prompt", prompts[0])
    assert len({plain["text"], *together["texts"]}) == 5 and "adapters" not in plain
    assert command_runs.call("generate", *both) == 0  # the base that the first adapter names
    said = capfd.readouterr()
    assert said.out.count(f"[{adapters['dora']} step 5]\n") == 2 and together["texts"][1] in said.out
    assert f"taking the base that {adapters['values']} step 5 names, {tiny_run}" in said.err


@pytest.mark.slow
def test_adapters_are_chosen_by_row_from_python(tiny_run, adapters) -> None:
    paths = [str(path) for path in adapters.values()]
    model, params, tokenizer = load(str(tiny_run), adapters=paths)
    settings = {"max_new_tokens": 12, "temperature": 0.0}
    texts = inference.generate(model, params, tokenizer, ["Return the "] * 2, adapter_ids=[1, 0], **settings)
    for path, text in zip(reversed(paths), texts, strict=True):
        model, params, tokenizer = load(str(tiny_run), adapters=[path])
        assert inference.generate(model, params, tokenizer, "Return the ", **settings) == text


@pytest.mark.slow
def test_evaluate_measures_base_and_adapter_together(tiny_run, adapters, tmp_path, capfd) -> None:
    (tmp_path / "text.txt").write_text("The function returns a list of the values in the dictionary.\n\n" * 20)
    measured = ("evaluate", "--data", tmp_path / "text.txt", "--model")
    base = last_line(capfd, *measured, tiny_run)
    beside = last_line(capfd, *measured, tiny_run, "--adapters", listed(adapters["values"]))
    alone = last_line(capfd, *measured, adapters["values"])
    assert beside["loss"] == alone["loss"] != base["loss"]
    assert beside["model_fingerprint"] == alone["model_fingerprint"] != base["model_fingerprint"]
    assert beside["model"] == f"{tiny_run} step 60 with {adapters['values']} step 5"


def converted(capfd, source: Path, target: Path, kind: str, *arguments: object) -> dict:
    return last_line(capfd, "convert", "--source", source, "--target", target, "--format", kind, *arguments)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hf", "orbax"])
def test_an_adapter_is_merged_and_taken_out_again(tiny_run, adapters, tmp_path, capfd, kind) -> None:
    adapter = adapters["values"]
    report = converted(capfd, adapter, tmp_path / "merged", kind)
    assert 0 < report["check"]["max_logit_difference"] < 1e-3 and report["check"]["argmax_agreement"] == 1
    given = ("generate", *GREEDY, "--prompt", "Return the ", "--model")
    assert last_line(capfd, *given, adapter)["text"] == last_line(capfd, *given, tmp_path / "merged")["text"]
    out = ("--adapter", adapter, "--unmerge")
    report = converted(capfd, tmp_path / "merged", tmp_path / "back", kind, *out)
    assert report["unmerge"] and report["check"]["max_logit_difference"] < 1e-3
    base, back = (open_weights(str(path), step=None, say=print) for path in (tiny_run, tmp_path / "back"))
    for name, layer in tensors_of(base.config):
        np.testing.assert_allclose(back.read(name, layer), base.read(name, layer), atol=1e-6, rtol=0)


@pytest.mark.slow
def test_merging_into_a_coarser_type_is_measured(adapters, tmp_path, capfd) -> None:
    report = converted(capfd, adapters["dora"], tmp_path / "merged", "hf", "--dtype", "bfloat16")
    assert report["target_dtypes"] == ["bfloat16"]
    assert 1e-4 < report["check"]["max_logit_difference"] < 0.2 * report["check"]["logit_standard_deviation"]


@pytest.mark.slow
def test_an_adapter_goes_to_peft_and_back(tiny_run, adapters, tmp_path, capfd) -> None:
    for name, adapter in adapters.items():
        target = tmp_path / name
        report = converted(capfd, adapter, target, "peft")
        assert report["check"]["max_logit_difference"] == 0
        tensors = load_file(target / "adapter_model.safetensors")
        shapes = [array.shape for key, array in tensors.items() if ".layers.0." in key and "lora_A" in key]
        assert sorted(shapes) == ([(3, 64), (3, 64)] if name == "values" else [(5, 64), (5, 176)])
        said = json.loads((target / "adapter_config.json").read_text())
        assert said["base_model_name_or_path"] == str(tiny_run) and said["use_dora"] == (name == "dora")
        given = ("generate", *GREEDY, "--prompt", "Return the ", "--model")
        assert last_line(capfd, *given, target)["text"] == last_line(capfd, *given, adapter)["text"]
        again = converted(capfd, tiny_run, tmp_path / f"{name} again", "peft", "--adapter", target)
        assert again["parameters"] == report["parameters"]
        copies = load_file(tmp_path / f"{name} again" / "adapter_model.safetensors")
        assert all((copies[key] == array).all() for key, array in tensors.items())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (("generate", "--model", "RUN", "--adapters", "[nowhere]"), "nowhere: no such file or directory"),
        (("generate", "--model", "RUN", "--adapters", "[RUN]"), "RUN: is a model, not an adapter"),
        (("generate", "--model", "A", "--adapters", "[A]"), "A: is an adapter itself; name its base as --model"),
        (
            ("generate", "--model", "OTHER", "--adapters", "[A]"),
            "belongs to a base other than OTHER: vocab_size is 300",
        ),
        (("evaluate", "--model", "RUN", "--adapters", "[A, A]"), "one at a time is measured"),
        (("convert", "--source", "RUN", "--format", "peft"), "--format peft: writes an adapter, which RUN is not"),
        (("convert", "--source", "A", "--adapter", "A"), "A: is an adapter itself"),
        (("convert", "--source", "RUN", "--unmerge"), "--unmerge: needs --adapter"),
        (("convert", "--source", "RUN", "--adapter", "D", "--unmerge"), "is a DoRA, which replaces the length"),
        (("convert", "--source", "RUN", "--adapter", "A", "--unmerge", "--format", "peft"), "gives a model, not"),
        (("convert", "--source", "A", "--format", "peft", "--dtype", "bfloat16"), "factors of adapters are written"),
        (("convert", "--source", "OTHER", "--adapter", "A"), "belongs to a base other than OTHER"),
    ],
)
def test_mistakes_are_told_in_one_line(
    tiny_run, small_run, adapters, tmp_path, monkeypatch, capfd, line, message
) -> None:
    monkeypatch.chdir(tmp_path)
    paths = {"RUN": tiny_run, "OTHER": small_run.run_dir, "A": adapters["values"], "D": adapters["dora"]}

    def filled(text: str) -> str:
        words = (word.strip("[],:") for word in text.split())
        for name in sorted({*words} & paths.keys()):
            text = text.replace(name, str(paths[name]))
        return text

    assert command_runs.call(*map(filled, line)) == 2
    errors = capfd.readouterr().err.strip().splitlines()
    assert filled(message) in errors[-1]
    assert not list(tmp_path.iterdir())
