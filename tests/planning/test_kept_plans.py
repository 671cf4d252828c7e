"""The plans that READMEs show are those that were kept, and what is said to fit does."""

import json

import record_rlhf_plans as rlhf
from record_plans import BEGIN, END, KEPT, PLANS, README, table

GIB = 2**30
KEPT_PLANS = {plan["arguments"]: plan for plan in json.loads(KEPT.read_text())}


def test_the_readme_shows_what_was_kept() -> None:
    assert list(KEPT_PLANS) == list(PLANS)
    shown = README.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    assert shown.strip() == table(list(KEPT_PLANS.values()))


def test_every_published_recipe_fits() -> None:
    assert {arguments for arguments, plan in KEPT_PLANS.items() if not plan["fits"]} == set()


def test_7b_on_v5e_256_sends_and_holds_what_the_layout_promises() -> None:
    default, less, least, staged = (KEPT_PLANS[arguments] for arguments in PLANS[:4])
    assert default["communication"]["ratio"] <= 1.35 and staged["communication"]["ratio"] <= 1.05
    assert default["memory"]["peak"] <= 7.7 * GIB
    assert max(less["memory"]["peak"], least["memory"]["peak"]) <= 15.75 * GIB
    again = [each["flops"]["recomputation"] for each in (default, less, least)]
    assert again[0] > again[1] + 0.01 and again[2] < 1.03


def test_a_step_of_decoding_moves_little_but_its_weights_and_caches() -> None:
    for arguments in PLANS[-2:]:
        plan = KEPT_PLANS[arguments]
        held = plan["memory"]["held"]
        assert plan["what"] == "decode step"
        assert plan["memory_traffic"] <= 1.1 * (held["parameters"] + held["caches"]), arguments


def test_the_readme_of_rlhf_shows_what_was_kept() -> None:
    kept = json.loads(rlhf.KEPT.read_text())
    assert [plan["arguments"] for plan in kept] == list(rlhf.PLANS)
    shown = rlhf.README.read_text(encoding="utf-8").partition(rlhf.BEGIN)[2].partition(END)[0]
    assert shown.strip() == rlhf.tables(kept)


def test_rlhf_at_7b_fits_16_chips_and_but_for_sft_one_gpu() -> None:
    on_chips, on_gpu = json.loads(rlhf.KEPT.read_text())
    assert on_chips["fits"] and (on_chips["devices"], on_gpu["devices"]) == (16, 1)
    assert {name: stage["fits"] for name, stage in on_gpu["stages"].items()} == {
        "sft": False,
        "reward": True,
        "ppo": True,
    }
