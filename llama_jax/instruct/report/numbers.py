"""What a run made, as numbers."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llama_jax.instruct.languages import Language
from llama_jax.instruct.pool import Candidate
from llama_jax.instruct.report.verbs import verb_and_noun
from llama_jax.instruct.tasks import Task

_PAIRS_SHOWN = 20
_VERBS_SHOWN, _NOUNS_SHOWN = 20, 4
"""As in the figures of both papers."""


def report(
    rounds: Sequence[Mapping[str, Any]],
    candidates: Sequence[tuple[int, Candidate]],
    seeds: Sequence[Task],
    language: Language,
) -> dict[str, Any]:
    """The funnel, lengths, similarities and verbs of a run.

    Args:
        rounds: Records of the rounds.
        candidates: Each with the number of its round.
    """
    every = [candidate for _, candidate in candidates]
    kept = [candidate for candidate in every if candidate.reason is None]
    return {
        "funnel": funnel(rounds, every),
        "classification": sum(candidate.is_classification for candidate in kept),
        "with_input": sum(bool(instance["input"]) for candidate in kept for instance in candidate.instances),
        "lengths": _lengths(kept, language),
        "similarity": {
            "to_pool": [round(candidate.similar[0][1], 4) if candidate.similar else 0.0 for candidate in kept],
            "to_seeds_by_round": _drift(candidates),
        },
        "most_similar_pairs": _most_similar(kept),
        "verbs": verbs([candidate.instruction for candidate in kept]),
        "verbs_of_seeds": verbs([seed.instruction for seed in seeds]),
    }


def funnel(rounds: Sequence[Mapping[str, Any]], candidates: Sequence[Candidate]) -> dict[str, Any]:
    """From requests to examples."""
    kept = [candidate for candidate in candidates if candidate.reason is None]
    dropped_instances: Counter[str] = Counter()
    for candidate in candidates:
        dropped_instances.update(candidate.dropped_instances)
    return {
        "rounds": len(rounds),
        "requests": sum(record["requests"] for record in rounds),
        "proposed": len(candidates),
        "dropped": dict(Counter(c.reason for c in candidates if c.reason is not None).most_common()),
        "kept": len(kept),
        "kept_fraction": len(kept) / len(candidates) if candidates else 0.0,
        "examples": sum(len(candidate.instances) for candidate in kept),
        "dropped_instances": dict(dropped_instances.most_common()),
    }


def verbs(instructions: Sequence[str]) -> dict[str, Any]:
    """The most frequent leading verbs with their most frequent objects, and how many instructions have them."""
    pairs = [pair for text in instructions if (pair := verb_and_noun(text)) is not None]
    by_verb: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for verb, noun in pairs:
        by_verb[verb][noun] += 1
    ranked = sorted(by_verb, key=lambda verb: (-by_verb[verb].total(), verb))[:_VERBS_SHOWN]
    return {
        "instructions": len(instructions),
        "with_verb_and_noun": len(pairs),
        "different_pairs": len(set(pairs)),
        "most_of_one_pair": max(Counter(pairs).values(), default=0),
        "top": {
            verb: {"count": by_verb[verb].total(), "nouns": dict(by_verb[verb].most_common(_NOUNS_SHOWN))}
            for verb in ranked
        },
    }


def _lengths(kept: Sequence[Candidate], language: Language) -> dict[str, list[int]]:
    """Words of each instruction, input that is not empty, and output."""
    instances = [instance for candidate in kept for instance in candidate.instances]
    return {
        "instruction": [language.length(candidate.instruction) for candidate in kept],
        "input": [language.length(instance["input"]) for instance in instances if instance["input"]],
        "output": [language.length(instance["output"]) for instance in instances],
    }


def _drift(candidates: Sequence[tuple[int, Candidate]]) -> dict[str, float]:
    """For each round, how similar its kept instructions are to the nearest seed, on average."""
    by_round: defaultdict[int, list[float]] = defaultdict(list)
    for number, candidate in candidates:
        if candidate.reason is None:
            by_round[number].append(candidate.seed_similarity)
    return {str(number): float(np.mean(values)) for number, values in sorted(by_round.items())}


def _most_similar(kept: Sequence[Candidate]) -> list[dict[str, Any]]:
    pairs = [(c.similar[0][1], c.instruction, c.similar[0][0]) for c in kept if c.similar]
    return [
        {"rouge_l": score, "instruction": instruction, "like": other}
        for score, instruction, other in sorted(pairs, key=lambda pair: -pair[0])[:_PAIRS_SHOWN]
    ]
