"""Pairs and single completions in ids of the small LLaMAs, and the losses of TRL that are recorded for them
(`record_trl.py`)."""

MODEL = "grouped_query"
"""Which of the small LLaMAs."""

EOS = 2
"""Ends each completion; 0 pads."""

PAIRS = [
    ([7, 31, 5], [44, 18, 63, 9], [44, 71]),
    ([52, 8, 90, 16, 33, 71], [12], [27, 85, 40, 3, 66, 91, 14]),
    ([60, 23], [35, 77, 77, 50, 19, 6], [88, 29, 41]),
    ([9, 9, 4, 81], [58, 21, 13], [58, 21, 95]),
]
"""Prompt, chosen and rejected completion, both without the EOS that TRL adds."""

MARGINS = [0.5, 0.0, 1.25, 2.0]

LABELS = [True, False, False, True]
"""Of the chosen completions, as single ones."""

BETA = 0.3

DPO = {
    "sigmoid": {"loss_type": ["sigmoid"]},
    "hinge": {"loss_type": ["hinge"]},
    "ipo": {"loss_type": ["ipo"]},
    "robust": {"loss_type": ["robust"], "label_smoothing": 0.1},
    "apo_zero": {"loss_type": ["apo_zero"]},
    "sigmoid_norm": {"loss_type": ["sigmoid_norm"]},
    "sigmoid_and_sft": {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.25]},
}
"""Settings of `DPOConfig`."""

KTO = {
    "kto": {"loss_type": "kto"},
    "kto_clamped": {"loss_type": "kto", "reference": "reference"},
    "kto_weighted": {"loss_type": "kto", "desirable_weight": 1.5, "undesirable_weight": 0.75},
}
"""Settings of `KTOConfig`; `reference`: another reference model, of which the estimated divergence is negative."""

CPO = {
    "simpo": {"loss_type": "simpo", "cpo_alpha": 0.0, "simpo_gamma": 0.5},
    "cpo": {"loss_type": "sigmoid", "cpo_alpha": 1.0},
}
"""Settings of `CPOConfig`."""

REWARD = {
    "plain": {},
    "margin": {"margin": True},
    "centered": {"margin": True, "center_rewards_coefficient": 0.1},
}
"""Settings of `RewardConfig`; `margin`: the data has `MARGINS`."""
