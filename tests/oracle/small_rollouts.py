"""A small rollout, made of random numbers, on which TRL's arithmetic was recorded: four completions of two prompts."""

import numpy as np

N, C, GROUP = 4, 6, 2
LENGTHS = np.array([6, 3, 1, 5])
ENDED = np.array([False, True, True, True])
MASK = np.arange(C)[None] < LENGTHS[:, None]


def rollout() -> dict[str, np.ndarray]:
    """Of each token: log-probabilities by the policy, the one that sampled, the sampler and the reference, values and
    what a critic says now; of each completion its rewards by three functions (NaN: none) and a score."""
    random = np.random.default_rng(7)
    found = {"old": random.normal(-2, 0.7, (N, C))}
    found |= {name: found["old"] + random.normal(0, scale, (N, C)) for name, scale in SPREAD.items()}
    found["values"] = random.normal(0, 1, (N, C))
    found["new_values"] = found["values"] + random.normal(0, 0.3, (N, C))
    found["rewards"] = np.array([[1.0, 0.2, np.nan], [0.0, np.nan, 2.0], [np.nan] * 3, [3.0, -1.0, 0.5]])
    found["more_rewards"] = random.normal(0, 2, (N, 3))
    found["advantages"] = random.normal(0, 1, N)
    found["scores"] = random.normal(0, 2, N)
    return {name: array.astype(np.float32) for name, array in found.items()}


SPREAD = {"new": 0.4, "sampler": 0.5, "reference": 0.3}
GRPO_LOSSES = {
    "grpo": {"loss_type": "grpo"},
    "bnpo": {"loss_type": "bnpo"},
    "dr_grpo": {"loss_type": "dr_grpo"},
    "dapo": {"loss_type": "dapo", "epsilon_high": 0.28},
    "delta": {"loss_type": "dapo", "delta": 1.3},
    "gspo": {"loss_type": "grpo", "level": "sequence"},
    "cispo": {"loss_type": "cispo", "epsilon_high": 1.2},
    "kl": {"loss_type": "grpo", "beta": 0.3, "corrected": False},
    "corrected_kl": {"loss_type": "dapo", "beta": 0.3},
    "gspo_kl": {"loss_type": "grpo", "level": "sequence", "beta": 0.3},
}
"""Settings of GRPOTrainer's losses that were recorded."""
CORRECTIONS = [
    (f"{level}_{kind}", low, high)
    for level in ("token", "sequence")
    for kind in ("truncate", "mask")
    for low, high in ((0.0, 3.0), (0.6, 1.4))
]
PPO_SETTINGS = {
    "plain": {"kl_estimator": "k1", "whiten_rewards": False},
    "k3": {"kl_estimator": "k3", "whiten_rewards": True},
}
