"""The published sizes have exactly the published numbers of parameters."""

import dataclasses

import pytest

from llama_jax.core.errors import UserError
from llama_jax.model.config import SIZES, ComputeConfig, LlamaConfig, RopeScaling, sized
from llama_jax.model.flops import flops_per_token
from llama_jax.model.llama import language_model

PARAMETERS = {
    "llama_7b": 6_738_415_616,
    "llama_13b": 13_015_864_320,
    "llama_33b": 32_528_943_616,
    "llama_65b": 65_285_660_672,
    "llama2_7b": 6_738_415_616,
    "llama2_13b": 13_015_864_320,
    "llama2_70b": 68_976_648_192,
    "llama3_8b": 8_030_261_248,
    "llama3_70b": 70_553_706_496,
    "llama3_405b": 405_853_388_800,
    "llama3.2_1b": 1_235_814_400,
    "llama3.2_3b": 3_212_749_824,
    "tinyllama_1.1b": 1_100_048_384,
    "smollm2_135m": 134_515_008,
    "smollm2_360m": 361_821_120,
    "smollm2_1.7b": 1_711_376_384,
}


@pytest.mark.parametrize("size", PARAMETERS)
def test_published_size_has_its_parameters(size: str) -> None:
    assert language_model(SIZES[size], ComputeConfig()).parameter_count() == PARAMETERS[size]


def test_vocabulary_padding_is_not_counted() -> None:
    """Alpaca's 32001st token adds one row to each of the two tables, whatever is stored."""
    config = dataclasses.replace(SIZES["llama_7b"], vocab_size=32001)
    assert config.padded_vocab_size == 32128
    count = language_model(config, ComputeConfig()).parameter_count()
    assert count == PARAMETERS["llama_7b"] + 2 * 4096


def test_flops_are_six_a_multiplying_parameter_and_causal_attention() -> None:
    model = language_model(SIZES["llama_7b"], ComputeConfig())
    matrices = 6_738_415_616 - 32000 * 4096
    assert flops_per_token(model, 2048) == 6 * matrices + 6 * 32 * 4096 * 2048


def test_unknown_size_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'llama_7b'"):
        sized("lama_7b")


def test_heads_must_share_key_value_heads_evenly() -> None:
    with pytest.raises(UserError, match=r"num_heads: 8 is not divisible by model\.num_kv_heads 3"):
        LlamaConfig(num_heads=8, num_kv_heads=3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rope_base": 1e-300}, r"model\.rope_base: 1e-300 must be at least 1"),
        ({"rope_base": float("nan")}, r"model\.rope_base: nan must be greater than 0"),
    ],
)
def test_a_base_that_turns_pairs_by_more_than_a_radian_is_refused(settings, message) -> None:
    with pytest.raises(UserError, match=message):
        LlamaConfig(**settings)


@pytest.mark.parametrize(("low", "high"), [(4.0, 4.0), (4.0, 1.0), (1.0, float("nan"))])
def test_a_scaling_that_divides_by_nothing_is_refused(low, high) -> None:
    with pytest.raises(UserError, match=r"high_frequency_factor: \S+ must be greater than"):
        RopeScaling(low_frequency_factor=low, high_frequency_factor=high)
