"""`benchmark grpo` and `benchmark ppo`: learning from rewards here and with TRL, from the same prompts, in alternating
turns, each side in a process of its own. The process that compares them must not start JAX."""

import contextlib
import dataclasses
import statistics
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from llama_jax.benchmarks import turns
from llama_jax.benchmarks.against import check_packages, compared
from llama_jax.benchmarks.exported import exported
from llama_jax.benchmarks.results import say
from llama_jax.benchmarks.rl.config import RlBenchmarkConfig
from llama_jax.benchmarks.rl.models import opened_by_both
from llama_jax.core.errors import UserError
from llama_jax.core.settings.command_line import to_yaml

_LAST_WITH_PPO = (1, 12)


def compare_rl(config: RlBenchmarkConfig, own_side: str) -> dict[str, Any]:
    """Both sides in turns, of some iterations each.

    Args:
        own_side: `module:function` that serves our side, see `turns.sides`; its task is the command and its config as
            YAML.

    Raises:
        UserError: a package of the other side is missing or of another version, or our side refuses the settings.
        RuntimeError: the two sides do not train the same model.
    """
    config.check_given()
    check_packages(config, ("torch", "transformers", "peft", "trl", "datasets"))
    if config.with_reward_model and tuple(map(int, version("trl").split(".")[:2])) > _LAST_WITH_PPO:
        raise UserError(
            f"--against {config.against}: trl {version('trl')} has no PPO any more; pip install trl==1.12.0"
        )
    programs = {"llama_jax": own_side, config.against: "llama_jax.benchmarks.rl.trl_side:main"}
    completions = config.run.rollout.completions
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        model, reward = opened_by_both(config, folder)
        theirs_too = [
            path and stack.enter_context(exported(path, "hf", config.against, lambda line: say(config, line)))
            for path in (model, reward)
        ]
        ours, theirs = stack.enter_context(turns.sides(programs))
        # One after the other, so that neither compiles while the other warms up.
        facts = {ours.name: ours.prepare([f"benchmark {config.what}", to_yaml(config.opening(model, reward))])}
        facts[theirs.name] = theirs.prepare(_task(config, theirs_too, facts[ours.name].pop("prompts")))
        for side in (ours, theirs):
            say(config, f"{side.name}: {facts[side.name]['what']}, {facts[side.name]['trained']:,} parameters train")
        if config.trains_alike and facts[ours.name]["trained"] != facts[theirs.name]["trained"]:
            raise RuntimeError("the two sides do not train the same model; their numbers of parameters are above")
        measured: dict[str, list[Any]] = {ours.name: [], theirs.name: []}
        for number in range(config.turns):
            for side in (ours, theirs):
                measured[side.name].append(side.take_turn(config.iterations_per_turn))
            own, other = (completions / side.seconds[-1] for side in (ours, theirs))
            say(config, f"turn {number + 1:>2}: {own:.3f} and {other:.3f} samples/s, ratio {own / other:.3f}")
    result = {"samples": completions, **compared(config, ours, theirs, facts, completions, "samples")}
    return result | _of_phases(config, measured)


def _task(config: RlBenchmarkConfig, paths: list[Any], prompts: list[list[int]]) -> dict[str, Any]:
    run = config.run
    adapted = run.method == "lora" and not config.with_reward_model
    return {
        "model": str(paths[0]),
        "reward_model": paths[1] and str(paths[1]),
        "prompts": prompts,
        "rollout": dataclasses.asdict(run.rollout),
        "training": dataclasses.asdict(run.training),
        "lora": dataclasses.asdict(run.lora) if adapted else None,
        "settings": config.settings_of_trl,
    }


def _of_phases(config: RlBenchmarkConfig, measured: dict[str, list[Any]]) -> dict[str, Any]:
    """Seconds of an iteration by phase, medians over turns, and what our side compiled in all turns."""
    seconds = {
        name: {phase: statistics.median(turn["seconds"][phase] for turn in found) for phase in found[0]["seconds"]}
        for name, found in measured.items()
    }
    own, other = seconds.values()
    compiled = sum(turn.get("compilations", 0) for found in measured.values() for turn in found)
    faster = other["generation"] / own["generation"]
    told = ", ".join(f"{phase} {each:.3f} s" for phase, each in own.items())
    say(config, f"an iteration here: {told}; generation there {other['generation']:.3f} s, ratio {faster:.3f}")
    say(config, f"compiled here after the second iteration: {compiled} programs")
    return {"phase_seconds": seconds, "generation_ratio": faster, "compilations": compiled}
