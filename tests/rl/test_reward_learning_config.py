"""Settings with which learning from rewards would be of no use, or of NaN, are refused by name."""

import math
from dataclasses import replace
from typing import Any

import pytest

from llama_jax.core.errors import UserError
from llama_jax.rl.config import GroupRewardsConfig, GroupRolloutConfig, GrpoConfig, RewardsConfig, RolloutConfig
from llama_jax.rl.ppo_config import CriticConfig, PpoConfig, PpoRewardsConfig, PpoRolloutConfig
from llama_jax.training.config import TrainingConfig

POLICY = TrainingConfig(spike_sigma=0.0)


@pytest.mark.parametrize(
    ("section", "settings", "message"),
    [
        (RolloutConfig, {"temperature": math.nan}, "rollout.temperature: nan must be 0 or a finite number"),
        (RolloutConfig, {"temperature": 0.0}, "rollout.temperature: 0.0 must be above 0, as nothing is drawn"),
        (RolloutConfig, {"max_new_tokens": 0}, "rollout.max_new_tokens: 0 must be at least 1"),
        (PpoRolloutConfig, {"top_p": 0.9}, "rollout.top_p: 0.9 must be 1.0: it changes the distribution"),
        (GroupRolloutConfig, {"num_generations": 1}, "rollout.num_generations: 1 must be at least 2"),
        (RewardsConfig, {"missing_end_penalty": 1e300}, r"rewards.missing_end_penalty: 1e\+300 must lie between 0 and"),
        (RewardsConfig, {"weights": (math.nan,)}, "rewards.weights: nan must be a number between"),
        (PpoRewardsConfig, {"model_weight": math.inf}, "rewards.model_weight: inf must be a number between"),
        (GroupRewardsConfig, {"functions": ()}, "rewards.functions: at least one is needed"),
        (GrpoConfig, {"training": POLICY, "most_divergence": -1.0}, "--most_divergence -1.0: must be above 0"),
        (GrpoConfig, {"training": POLICY, "most_divergence": math.nan}, "--most_divergence nan: must be above 0"),
        (
            PpoConfig,
            {"training": replace(POLICY, steps=3), "critic": CriticConfig(warmup_iterations=3)},
            "critic.warmup_iterations: 3 leaves the policy none of the 3 iterations",
        ),
        (
            GrpoConfig,
            {"training": POLICY, "rewards": GroupRewardsConfig(overlong_buffer=200)},
            "rewards.overlong_buffer: 200 is more than the longest completion has, rollout.max_new_tokens 128",
        ),
        (
            GrpoConfig,
            {"training": replace(POLICY, batch_ramp=((0, 16), (2, 32)))},
            r"training.batch_ramp: \[\[0, 16\], \[2, 32\]\] must be \[\]; losses of policies",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(section: type, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        section(**settings)
