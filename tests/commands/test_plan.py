"""`plan`: what compiles, what does not fit, and what is the user's mistake."""

import importlib
import importlib.util
import json
from dataclasses import fields

import pytest
from command_runs import call

from llama_jax.config import COMMANDS
from llama_jax.plan import planned_command

needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu has no wheel here")
needs_cuda = pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda12_plugin") is None, reason="JAX's CUDA plugin has no wheel here"
)
SMALL = ("--model.size", "tiny", "--data.sequence_length", 256, "--compute.dtype", "bfloat16")
GIB = 2**30


def planned(capfd, *arguments: object, command: str = "plan") -> tuple[dict, str]:
    """The JSON object, and what was said to people."""
    assert call(command, *arguments, "--json") == 0
    printed = capfd.readouterr()
    print(printed.err)
    return json.loads(printed.out.splitlines()[-1]), printed.err


def test_every_command_whose_settings_are_listed_beside_those_of_plan_can_be_planned():
    listed = {name: settings for name, settings in COMMANDS.items() if name.partition(" ")[0] == "plan"}
    planned_commands = {name: planned_command(settings()) for name, settings in listed.items()}
    others = ("benchmark", "sft", "lora", "reward", "dpo", "kto", "grpo", "ppo", "rlhf")
    assert planned_commands == {"plan": "pretrain", **{f"plan {name}": name for name in others}}
    for name, command in planned_commands.items():
        # Of a benchmark `plan` takes the settings that it shares with others, made into one class again.
        assert {each.name for each in fields(COMMANDS[command])} <= {each.name for each in fields(listed[name])}
        if command != "rlhf":  # which is planned by its stages
            assert callable(importlib.import_module(f"llama_jax.{command}").build)


@needs_libtpu
def test_a_step_is_compiled_and_all_of_it_accounted_for(capfd):
    report, said = planned(capfd, *SMALL, "--compute.remat", "full", "--topology", "v5e-8")
    assert report["fits"] and report["what"] == "pretrain step" and report["attention"] == "splash"
    assert (report["topology"], report["devices"], report["device_kind"]) == ("v5e:2x4", 8, "TPU v5 lite")
    memory = report["memory"]
    assert memory["limit"] == 15.75 * GIB and memory["headroom"] == memory["limit"] - memory["peak"]
    # 166,208 parameters of which the norms are whole: float32, and two moments.
    norms = 5 * 64
    assert memory["held"]["parameters"] == 4 * ((report["parameters"] - norms) // 8 + norms)
    assert memory["held"]["optimizer"] == pytest.approx(2 * memory["held"]["parameters"], rel=0.1)
    # (More than that: arrays are padded to tiles.)
    assert memory["updated_in_place"] >= memory["held"]["parameters"] + memory["held"]["optimizer"]
    # The forward pass of the layers but for down_proj is made again.
    assert 1.1 < report["flops"]["recomputation"] < 1.4
    sent = report["communication"]
    assert sent["wire_bytes"] == sum(each["wire_bytes"] for each in sent["collectives"])
    assert {tuple(each["axes"]) for each in sent["collectives"]} == {("fsdp",)}
    assert 0.9 < sent["ratio"] < 1.3
    bound = report["roofline"]
    assert bound["seconds"]["compute"] == pytest.approx(report["flops"]["program"] / 8 / 197e12)
    assert bound["all_at_once"] <= bound["as_scheduled"] <= bound["one_by_one"]
    assert "a model from public peak figures, not a measurement" in said and "fits:       yes" in said


@needs_libtpu
def test_what_does_not_fit_says_by_how_much_and_what_would(capfd):
    wide = ("--config", "pretrain_65b", "--model.num_layers", 2, "--training.batch_size", 128)
    report, said = planned(capfd, *wide, "--topology", "v5e:2x4", "--compute.remat", "none")
    memory = report["memory"]
    assert not report["fits"] and memory["shortfall"] == memory["needed"] - memory["limit"] > GIB
    assert len(report["remedies"]) == 3
    assert all(each["estimated"]["memory"] <= memory["limit"] for each in report["remedies"])
    costs = [each["estimated"]["time_a_token"] for each in report["remedies"]]
    assert costs == sorted(costs) and costs[0] > 1
    assert "fits:       NO" in said and report["remedies"][0]["options"] in said and "estimated" in said


@pytest.mark.slow
@needs_libtpu
def test_the_step_of_an_adapter_is_planned_by_its_command(capfd):
    report, _ = planned(
        capfd, "--size", "tiny", "--topology", "v5e:2x2", "--data.sequence_length", 128, command="plan lora"
    )
    assert report["fits"] and report["what"] == "lora step"
    assert 0 < report["trained"] < report["parameters"] / 4
    assert report["memory"]["held"]["frozen"] > report["memory"]["held"]["parameters"] > 0


@pytest.mark.slow
@needs_libtpu
def test_decoding_is_planned_with_its_caches(capfd):
    arguments = ("--what", "decode", "--decode_rows", 4, "--decode_slots", 128, "--mesh.fsdp", 1, "--mesh.tensor", 8)
    report, _ = planned(capfd, *SMALL, "--topology", "v5e:2x4", *arguments)
    assert report["fits"] and report["what"] == "decode step"
    # Keys and values of 2 layers: 4 rows, 128 slots, 8 heads of 8 over 8 devices, bfloat16.
    assert report["memory"]["held"]["caches"] == 2 * 2 * 4 * 128 * 8 * 2
    assert report["flops"]["program"] == pytest.approx(report["flops"]["model"], rel=0.05)


@needs_libtpu
@pytest.mark.slow
def test_a_search_ranks_what_it_compiled(capfd):
    arguments = ("--search", "--compiled", 2, "--shown", 5, "--training.batch_size", 16)
    report, said = planned(capfd, *SMALL, "--topology", "v5e:2x2", *arguments)
    ranked = report["ranked"]
    assert report["fits"] and len(ranked) == 5 <= report["fitting"] <= report["candidates"]
    seconds = [each["roofline"]["as_scheduled"] for each in ranked[:2]]
    assert seconds == sorted(seconds) and not any("roofline" in each for each in ranked[2:])
    assert ranked[0]["options"] in said
    # What is shown can be typed.
    alone, _ = planned(
        capfd, *SMALL, "--topology", "v5e:2x2", "--training.batch_size", 16, *ranked[0]["options"].split()
    )
    assert alone["memory"]["peak"] == ranked[0]["memory"]["peak"]


@needs_cuda
@pytest.mark.slow
def test_a_step_is_compiled_for_gpus(capfd):
    report, _ = planned(capfd, *SMALL, "--topology", "h100:2x4", "--training.batch_size", 8)
    assert report["fits"] and report["device_kind"] == "NVIDIA H100 80GB HBM3" and report["devices"] == 8
    assert report["attention"] == "triton"
    assert report["communication"]["wire_bytes"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--topology", "v5e:3x5"), "topology: 'v5e:3x5' is not a slice of v5e"),
        (("--topology", "v5e:2x2", "--num_slices", 2), "mesh.data: 1 is not divisible by the 2 slices"),
        (
            ("--topology", "v5e:2x2", "--mesh.fsdp_stages", "[2, 4]"),
            "mesh.fsdp_stages: [2, 4] does not make mesh.fsdp 4",
        ),
        (("--what", "decode", "--search"), "--search: is for --what step"),
        (("--what", "decode", "--decode_rows", 3), "--decode_rows: 3 rows are not divisible by the 8 devices"),
        (("--what", "decode", "--decode_slots", 9999), "--decode_slots: 9999 exceeds model.context_length 2048"),
    ],
)
@needs_libtpu
def test_mistakes_are_named(capfd, arguments, message):
    assert call("plan", *arguments) == 2
    errors = capfd.readouterr().err
    assert f"error: {message}" in errors and "Traceback" not in errors
