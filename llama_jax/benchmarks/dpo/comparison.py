"""`benchmark dpo`: DPO here and with TRL on the same pairs, in alternating turns, each side in a process of its own.
The process that compares them must not start JAX."""

import dataclasses
from typing import Any

import numpy as np

from llama_jax.benchmarks import turns
from llama_jax.benchmarks.against import check_packages, compared
from llama_jax.benchmarks.config import DpoBenchmarkConfig
from llama_jax.benchmarks.exported import exported
from llama_jax.benchmarks.results import say
from llama_jax.core.settings.command_line import to_yaml

_AGREEMENT = 1e-4
"""By how much log p of a completion may differ, of its size."""


def compare_dpo(config: DpoBenchmarkConfig, own_side: str) -> dict[str, Any]:
    """Both sides in turns; a turn is a pass over the same pairs.

    Args:
        own_side: `module:function` that serves our side, see `turns.sides`; its task is the command and its config as
            YAML.

    Raises:
        UserError: a package of the other side is missing, or our side refuses the settings.
        RuntimeError: the two sides do not make the same of the pairs.
    """
    check_packages(config, ("torch", "transformers", "peft", "trl", "datasets"))
    programs = {"llama_jax": own_side, config.against: "llama_jax.benchmarks.dpo.trl_side:main"}
    model = str(config.run.model)
    with (
        exported(model, "hf", config.against, lambda line: say(config, line)) as weights,
        turns.sides(programs) as both,
    ):
        ours, theirs = both
        # One after the other, so that neither compiles while the other warms up.
        facts = {ours.name: ours.prepare(["benchmark dpo", to_yaml(config)])}
        pairs = facts[ours.name].pop("pairs")
        updates = facts[ours.name]["updates"]
        task = {
            "model": str(weights),
            "pairs": pairs,
            "batch_size": round(len(pairs) / updates),
            "beta": config.run.beta,
            "lora": dataclasses.asdict(config.run.lora),
            "training": dataclasses.asdict(config.run.training),
            "checkpointing": config.checkpointing,
        }
        facts[theirs.name] = theirs.prepare(task)
        for side in both:
            fact = facts[side.name]
            say(config, f"{side.name}: {fact['what']}, {fact['trained']:,} parameters train, {fact['updates']} updates")
        _check_agreement(config, facts)
        for number in range(config.turns):
            losses = [side.take_turn(1) for side in both]
            own, other = (len(pairs) / side.seconds[-1] for side in both)
            say(
                config,
                f"turn {number + 1:>2}: {own:.3f} and {other:.3f} pairs/s, ratio {own / other:.3f}; losses "
                f"{losses[0]:.4f} and {losses[1]:.4f}",
            )
    return {"pairs": len(pairs), **compared(config, ours, theirs, facts, len(pairs), "pairs")}


def _check_agreement(config: DpoBenchmarkConfig, facts: dict[str, dict[str, Any]]) -> None:
    """Make sure that both sides train as many parameters and read the same in the pairs."""
    both = list(facts.values())
    if both[0]["trained"] != both[1]["trained"]:
        raise RuntimeError("the two sides do not train the same adapter; their numbers of parameters are above")
    own, other = (np.array(fact.pop("reference")) for fact in both)
    difference = float(np.max(np.abs(own - other) / np.abs(other)))
    if difference > _AGREEMENT:
        raise RuntimeError(f"log p of completions differs by {difference:.2g} of its size: not the same model or pairs")
    say(config, f"log p of all completions under the reference model agrees within {difference:.1g} of its size")
