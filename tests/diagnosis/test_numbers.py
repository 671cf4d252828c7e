"""Numbers beside float64: what is right passes, and what is wrong by a little of its meaning does not."""

import json

import jax
import numpy as np
import pytest

from llama_jax.diagnosis import numbers
from llama_jax.diagnosis.examination import wrong_by
from llama_jax.diagnosis.numbers import (
    LOSSES,
    Check,
    attention_error,
    cross_entropy_error,
    product_error,
    rotary_error,
    tolerance,
    training_error,
    worst,
)
from llama_jax.model.attention.choice import attention
from llama_jax.model.layers import matmul
from llama_jax.model.quantized import dequantize, quantize
from llama_jax.model.rope import rotate
from llama_jax.objectives.cross_entropy import summed_cross_entropy


def test_attention_that_looks_into_another_document_is_caught() -> None:
    def of_one_document(query, key, value, segments):
        return attention(query, key, value, implementation="xla")

    assert attention_error(of_one_document, "bfloat16") > 4 * tolerance("bfloat16")


@pytest.mark.slow
def test_a_product_that_is_off_by_a_part_in_a_thousand_is_caught_in_float32() -> None:
    assert product_error(matmul, "float32") < tolerance("float32")
    assert product_error(lambda x, weight: matmul(x, weight) * 1.001, "float32") > tolerance("float32")


@pytest.mark.slow
def test_a_loss_that_ignores_its_weights_and_a_rotation_the_other_way_are_caught() -> None:
    def unweighted(unembed, z_loss, head, hidden, targets, weights):
        return summed_cross_entropy(unembed, z_loss, head, hidden, targets, jax.numpy.ones_like(weights))

    assert cross_entropy_error(summed_cross_entropy, "float32") < tolerance("float32")
    assert cross_entropy_error(unweighted, "float32") > tolerance("bfloat16")
    assert rotary_error(lambda x, cosine, sine: rotate(x, cosine, -sine), "bfloat16") > tolerance("bfloat16")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_codes_stand_for_the_same_matrix_by_the_formulas(kind) -> None:
    kernel = jax.random.normal(jax.random.key(0), (512, 64))
    weight = quantize(kernel, kind)
    np.testing.assert_allclose(numbers.dequantized(weight), dequantize(weight, np.dtype("float32")), rtol=1e-6)


def test_losses_of_a_run_that_learns_otherwise_are_caught() -> None:
    assert training_error(lambda _: list(LOSSES), "float32") == 0
    assert training_error(lambda _: [*LOSSES[:-1], LOSSES[-1] * 1.05], "bfloat16") == pytest.approx(0.05)


@pytest.mark.slow
def test_every_check_of_this_machine_passes() -> None:
    found = [check.found() for check in numbers.checks(thorough=True)]
    assert [each for each in found if not each["ok"]] == []
    names = {each["what"].partition(",")[0] for each in found}
    assert names >= {"attention xla", "attention blocked", "attention splash", "attention triton", "training"}


def test_of_several_processes_what_is_wrong_is_told() -> None:
    right, wrong, none = (Check("x", lambda error=error: error, 0.2).found() for error in (0.1, 0.3, float("nan")))
    assert right["ok"] and not wrong["ok"]
    assert worst([right, wrong]) == wrong and worst([wrong, none, right]) == none
    assert json.loads(json.dumps(none))["error"] is None and not none["ok"]
    assert wrong_by(wrong) == "off by 3.0e-01, of 2.0e-01 that rounding explains"
    assert wrong_by(Check("x", lambda: 0.0, 0.2).failed("no such kernel")) == "no such kernel"
