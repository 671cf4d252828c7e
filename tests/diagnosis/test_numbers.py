"""Numbers beside float64: what is right passes, and what is wrong by a little of its meaning does not."""

import json

import jax
import numpy as np
import pytest

from llama_jax.diagnosis import numbers
from llama_jax.diagnosis.examination import wrong_by
from llama_jax.diagnosis.numbers import LOSSES, Checked, check_attention, check_product, check_training, failed, worst
from llama_jax.model.attention.choice import attention
from llama_jax.model.layers import matmul
from llama_jax.model.quantized import dequantize, quantize
from llama_jax.objectives.cross_entropy import summed_cross_entropy


def test_attention_that_looks_into_another_document_is_caught() -> None:
    def of_one_document(query, key, value, segments):
        return attention(query, key, value, implementation="xla")

    wrong = check_attention(of_one_document, "xla", "bfloat16")
    assert wrong.error > 4 * wrong.tolerance and not wrong.ok
    assert wrong.what == "attention xla, bfloat16"


@pytest.mark.slow
def test_a_product_that_is_off_by_a_part_in_a_thousand_is_caught_in_float32_alone() -> None:
    for dtype, caught in (("float32", True), ("bfloat16", False)):
        assert check_product(matmul, dtype).ok
        assert check_product(lambda x, weight: matmul(x, weight) * 1.001, dtype).ok is not caught
    assert not check_product(lambda x, weight: matmul(x, weight) * float("nan"), "bfloat16").ok


@pytest.mark.slow
def test_a_loss_that_ignores_its_weights_and_a_rotation_the_other_way_are_caught() -> None:
    def unweighted(unembed, z_loss, head, hidden, targets, weights):
        return summed_cross_entropy(unembed, z_loss, head, hidden, targets, np.ones_like(weights))

    assert numbers.check_cross_entropy(summed_cross_entropy, "float32").ok
    assert not numbers.check_cross_entropy(unweighted, "float32").ok
    assert not numbers.check_rotary(lambda x, cosine, sine: numbers.rotate(x, cosine, -sine), "bfloat16").ok


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_codes_stand_for_the_same_matrix_by_the_formulas(kind) -> None:
    kernel = jax.random.normal(jax.random.key(0), (512, 64))
    weight = quantize(kernel, kind)
    np.testing.assert_allclose(numbers.dequantized(weight), dequantize(weight, np.dtype("float32")), rtol=1e-6)


def test_losses_of_a_run_that_learns_otherwise_are_caught() -> None:
    assert check_training("float32", lambda _: list(LOSSES)).error == 0
    slower = [*LOSSES[:-1], LOSSES[-1] * 1.02]
    assert check_training("bfloat16", lambda _: slower).ok
    assert not check_training("float32", lambda _: slower).ok
    assert not check_training("bfloat16", lambda _: [*LOSSES[:-1], float("nan")]).ok


@pytest.mark.slow
def test_every_check_of_this_machine_passes_and_says_what_it_looked_at() -> None:
    found = [(what, check()) for what, check in numbers.checks(thorough=True)]
    assert [what for what, checked in found if not checked.ok] == []
    assert [checked.what for _, checked in found] == [what for what, _ in found]
    names = {what.partition(",")[0] for what, _ in found}
    assert names >= {"attention xla", "attention blocked", "attention splash", "attention triton", "training"}


def test_of_several_processes_what_is_wrong_is_told() -> None:
    right, wrong = Checked("x", 0.1, 0.2).as_json(), Checked("x", 0.3, 0.2).as_json()
    none = Checked("x", float("nan"), 0.2).as_json()
    assert worst([right, wrong]) == wrong and worst([wrong, none, right]) == none
    assert json.loads(json.dumps(none))["error"] is None and not none["ok"]
    assert wrong_by(wrong) == "off by 3.0e-01, of 2.0e-01 that rounding explains"
    assert wrong_by(failed("x", "no such kernel").as_json()) == "no such kernel"
