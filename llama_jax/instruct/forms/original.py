"""Self-Instruct as published (arXiv:2212.10560 and its code): new instructions after eight others, which of them are
classification, and instances, labels first for those. One round does all of it for a few requests, so that a run is of
use wherever it ends."""

from collections.abc import Sequence

from llama_jax.instruct.asking import UNUSABLE, Asking, Round, bound, unusable
from llama_jax.instruct.filters import kept_instances
from llama_jax.instruct.generators.requests import Answer, Request
from llama_jax.instruct.parsing import (
    input_first_instances,
    numbered_instructions,
    output_first_instances,
    says_yes,
)
from llama_jax.instruct.pool import Candidate
from llama_jax.instruct.tasks import Task

_SHOWN = 8
_MACHINE_WRITTEN_SHOWN = 2
_LAST = 16
"""The number of a list at which an answer is stopped."""
_YES_SHOWN, _NO_SHOWN = 12, 19
_INPUT_FIRST_SHOWN, _OUTPUT_FIRST_SHOWN = 11, 16


def original_round(asking: Asking, number: int) -> Round:
    """One round: see the module."""
    config = asking.config
    answers = yield [_list_request(asking, number, place) for place in range(config.requests_per_round)]
    candidates = unusable(answers)
    for answer in filter(lambda answer: answer.is_usable, answers):
        proposed = numbered_instructions(answer.text, _SHOWN + 1, was_cut=answer.was_cut)
        if not proposed:
            candidates.append(Candidate.malformed(answer.text, "cut_off" if answer.was_cut else "malformed"))
        candidates += [asking.pool.propose(asking.language.written(text)) for text in proposed]
    fresh = [candidate for candidate in candidates if candidate.in_pool]
    if not fresh:
        return candidates
    verdicts = yield [_classification_request(asking, candidate) for candidate in fresh]
    for candidate, verdict in zip(fresh, verdicts, strict=True):
        candidate.is_classification = says_yes(verdict.text)
    # One request for all would bound every answer by that of classification, as the published code does.
    written = yield [_instance_request(asking, candidate) for candidate in fresh]
    for candidate, answer in zip(fresh, written, strict=True):
        _give_instances(candidate, answer)
    return candidates


def _list_request(asking: Asking, number: int, place: int) -> Request:
    draw, pool = asking.draw(number, place), asking.pool
    machine = draw.sample(pool.machine_written, min(_MACHINE_WRITTEN_SHOWN, len(pool.machine_written)))
    seeds = draw.sample([seed.instruction for seed in pool.seeds], min(_SHOWN - len(machine), len(pool.seeds)))
    shown = [text.rstrip(":：") for text in machine + seeds]
    draw.shuffle(shown)
    config, prompts = asking.config, asking.prompts
    text = prompts.instructions(shown, config.domain)
    ends = (f"\n{_LAST}.", f"\n{_LAST} .")
    return Request(
        asking.put(text, prompts.continue_series),
        bound(config, 1024),
        0.7 if config.temperature is None else config.temperature,
        0.5 if config.top_p is None else config.top_p,
        presence_penalty=2.0,
        # What answers a message may leave lines empty between two tasks.
        stop=ends if asking.chats else ("\n\n", *ends),
        seed=asking.request_seed(number, place),
    )


def _classification_request(asking: Asking, candidate: Candidate) -> Request:
    seeds, prompts = asking.pool.seeds, asking.prompts
    yes = [seed for seed in seeds if seed.is_classification][:_YES_SHOWN]
    no = [seed for seed in seeds if not seed.is_classification][:_NO_SHOWN]
    shown = asking.draw(-1, 0).sample(yes + no, len(yes) + len(no))  # one order for all: a prompt read once
    text = prompts.classification(shown, candidate.instruction)
    put = asking.put(text, prompts.answer_yes_or_no)
    return Request(put, bound(asking.config, 3), 0.0, stop=("\n", prompts.task))


def _instance_request(asking: Asking, candidate: Candidate) -> Request:
    seeds, prompts, domain = asking.pool.seeds, asking.prompts, asking.config.domain
    shown = [seed for seed in seeds if seed.is_classification == candidate.is_classification]
    if candidate.is_classification and shown:
        text, ending = prompts.labelled(_short(shown, _OUTPUT_FIRST_SHOWN), candidate.instruction, domain), "labels"
    else:
        text, ending = prompts.instances(_short(shown, _INPUT_FIRST_SHOWN), candidate.instruction, domain), "instances"
    stop = (f"{prompts.example} 6", f"{prompts.task}{prompts.colon}")
    put = asking.put(text, prompts.write_labels if ending == "labels" else prompts.write_instances)
    return Request(put, bound(asking.config, 300 if ending == "labels" else 350), 0.0, presence_penalty=1.5, stop=stop)


def _short(seeds: Sequence[Task], count: int) -> list[Task]:
    """The seeds that take the least room, in their order: demonstrations are in every request."""

    def size(seed: Task) -> int:
        return len(seed.instruction) + sum(len(each.input) + len(each.output) for each in seed.instances)

    shortest = sorted(seeds, key=size)[:count]
    return [seed for seed in seeds if seed in shortest]


def _give_instances(candidate: Candidate, answer: Answer) -> None:
    if not answer.is_usable:
        candidate.reason = UNUSABLE[answer.finish]
        return
    parse = output_first_instances if candidate.is_classification else input_first_instances
    found = parse(answer.text, was_cut=answer.was_cut)
    kept, candidate.dropped_instances = kept_instances(found)
    if kept:
        candidate.give(kept)
    else:
        candidate.reason = "cut_off" if answer.was_cut and not found else "no_instance"
