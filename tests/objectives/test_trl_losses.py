"""Losses on preferences, their gradients and what is reported of them are TRL's, on numbers recorded by
`tests/oracle/record_trl.py` for rows that pad where ours are packed."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_llamas import BASE, SHAPES
from small_parameters import parameters
from small_preferences import BETA, CPO, DPO, EOS, KTO, LABELS, MARGINS, MODEL, PAIRS, REWARD
from sweeps import some

from llama_jax.core import tree
from llama_jax.core.batches import completion_batch
from llama_jax.data.preferences.examples import CollectedCompletions
from llama_jax.data.preferences.rows import completion_row
from llama_jax.model.config import ComputeConfig, LlamaConfig
from llama_jax.model.llama import language_model
from llama_jax.objectives import preference as losses
from llama_jax.objectives.kto import kto
from llama_jax.objectives.preference import preference
from llama_jax.objectives.reward import bradley_terry, scored

RECORDED = np.load(Path(__file__).parents[1] / "oracle" / "trl_preferences.npz")
KIND = completion_batch(2, 2)

OF_DPO = {
    "sigmoid": {"loss": losses.sigmoid},
    "hinge": {"loss": losses.hinge},
    "ipo": {"loss": losses.ipo_tokens},
    "robust": {"loss": functools.partial(losses.robust, label_smoothing=0.1)},
    "apo_zero": {"loss": losses.apo_zero},
    "sigmoid_norm": {"loss": losses.length_normalized},
    "sigmoid_and_sft": {"loss": losses.sigmoid, "sft_weight": 0.25},
    "simpo": {"loss": functools.partial(losses.simpo, target_margin=0.5)},
    "cpo": {"loss": losses.sigmoid, "sft_weight": 1.0},
}
"""What each loss of TRL is called here."""


def batch_of(examples, labels, reference=0.0):
    """Two rows of two examples, each of two sequences: a prompt with one of two completions."""
    collected = CollectedCompletions(2)
    for (prompt, *completions), label in zip(examples, labels, strict=True):
        sequences = [(prompt + ids + [EOS], [False] * len(prompt) + [True] * (len(ids) + 1)) for ids in completions]
        collected.add(sequences, float(label))
    found = collected.examples()
    found.reference[:] = reference
    rows = [completion_row(KIND, found, numbers, 64) for numbers in ((0, 1), (2, 3))]
    fields = {name: jnp.stack([row[name] for row in rows]) for name in rows[0]}
    return KIND(**fields, normalizer=jnp.float32(len(examples)))


@functools.cache
def small(scalar_head=False):
    """The network and its parameters."""
    config = LlamaConfig.from_json(BASE | SHAPES[MODEL] | {"scalar_head": scalar_head})
    return language_model(config, ComputeConfig()), parameters(config)


def check(objective, params, batch, case, names):
    """Loss, gradients and metrics against those that are recorded.

    Args:
        names: of metrics, ours with TRL's.
    """
    recorded = {key.removeprefix(f"{case}/"): RECORDED[key] for key in RECORDED if key.startswith(f"{case}/")}
    gradients, metrics = jax.jit(jax.grad(objective, has_aux=True))(params, {}, batch, None)
    names = {"loss": "loss"} | names
    assert {name: float(metrics[name]) for name in names} == {
        name: pytest.approx(float(recorded[theirs]), abs=1e-5, rel=1e-6) for name, theirs in names.items()
    }
    leaves = tree.flatten(gradients)
    ours = {"first_norm": leaves["layers/attention_norm/scale"][0], "final_norm": leaves["final_norm/scale"]}
    if "head" in recorded:
        ours["head"] = leaves["score/kernel"].T
    for name, gradient in ours.items():
        np.testing.assert_allclose(gradient, recorded[name], atol=1e-5 * (1 + np.abs(recorded[name]).max()), rtol=0)


@pytest.mark.parametrize("name", DPO)
def test_losses_on_log_probs_are_those_of_trl(name):
    """Of whole pairs, from the log-probs that TRL found."""
    settings = dict(OF_DPO[name])
    ratios = jnp.asarray(RECORDED[f"dpo/{name}/logprobs"] - RECORDED[f"dpo/{name}/reference"])
    lengths = jnp.array([[len(chosen) + 1.0, len(rejected) + 1.0] for _, chosen, rejected in PAIRS])
    found = settings["loss"](ratios, lengths, beta=BETA).mean()
    chosen = -RECORDED[f"dpo/{name}/logprobs"][:, 0].sum() / lengths[:, 0].sum()
    found += settings.get("sft_weight", 0.0) * chosen
    assert float(found) == pytest.approx(float(RECORDED[f"dpo/{name}/loss"]), abs=1e-5)


@pytest.mark.parametrize("name", some(REWARD, ["centered"]))
def test_rewards_are_learned_as_by_trl(name):
    model, params = small(scalar_head=True)
    margins = MARGINS if "margin" in REWARD[name] else [0.0] * len(PAIRS)
    objective = scored(model, KIND, bradley_terry(REWARD[name].get("center_rewards_coefficient", 0.0)))
    batch = batch_of(PAIRS, margins)
    check(objective, params, batch, f"reward/{name}", {"accuracy": "accuracy", "reward_margin": "margin"})


@pytest.mark.parametrize("name", some([*DPO, *CPO], ["sigmoid_and_sft", "simpo"]))
def test_pairs_are_learned_as_by_trl(name):
    """`simpo` and `cpo` have no reference model: log p takes the place of ratios."""
    model, params = small()
    case = f"dpo/{name}" if name in DPO else f"cpo/{name}"
    settings = dict(OF_DPO[name])
    per_token = name == "simpo"
    loss = functools.partial(settings.pop("loss"), beta=BETA)
    objective = preference(model, loss, KIND, beta=BETA, per_token=per_token, **settings)
    batch = batch_of(PAIRS, MARGINS, RECORDED[f"{case}/reference"] if name in DPO else 0.0)
    names = {"rewards_chosen": "rewards/chosen", "rewards_rejected": "rewards/rejected"}
    names |= {"reward_margin": "rewards/margins", "accuracy": "rewards/accuracies"}
    if not per_token:  # TRL reports means per token where the loss takes them
        names |= {"logprobs_chosen": "logps/chosen", "logprobs_rejected": "logps/rejected"}
    check(objective, params, batch, case, names)


@pytest.mark.slow
def test_odds_are_those_of_trl():
    """The whole of TRL's ORPO has the loss on prompts, too."""
    model, params = small()
    loss = functools.partial(losses.odds_ratio, beta=BETA)
    objective = preference(model, loss, KIND, beta=BETA, per_token=True)
    _, metrics = jax.jit(objective)(params, {}, batch_of(PAIRS, MARGINS), None)
    assert float(metrics["loss"]) == pytest.approx(-BETA * float(RECORDED["orpo/log_odds_ratio"]), abs=1e-5)
    assert float(metrics["reward_margin"]) == pytest.approx(float(RECORDED["orpo/rewards/margins"]), abs=1e-5)
    whole = RECORDED["orpo/nll_loss"] - BETA * RECORDED["orpo/log_odds_ratio"]
    assert float(RECORDED["orpo/loss"]) == pytest.approx(float(whole), abs=1e-5)


@pytest.mark.parametrize("name", some(KTO, ["kto_weighted"]))
def test_judged_completions_are_learned_as_by_trl(name):
    """The divergence is from the completions that TRL takes."""
    model, params = small()
    others = [ids[: ids.tolist().index(EOS)].tolist() for ids in RECORDED[f"kto/{name}/kl_completions"]]
    examples = [(prompt, chosen, other) for (prompt, chosen, _), other in zip(PAIRS, others, strict=True)]
    batch = batch_of(examples, LABELS, RECORDED[f"kto/{name}/reference"])
    weights = {key: KTO[name][key] for key in ("desirable_weight", "undesirable_weight") if key in KTO[name]}
    names = {"kl": "kl", "rewards_chosen": "rewards/chosen", "rewards_rejected": "rewards/rejected"}
    names |= {"logprobs_chosen": "logps/chosen", "logprobs_rejected": "logps/rejected"}
    names["reward_margin"] = "rewards/margins"
    check(kto(model, KIND, beta=BETA, **weights), params, batch, f"kto/{name}", names)
    assert (float(RECORDED[f"kto/{name}/kl"]) > 0) == (name != "kto_clamped")
