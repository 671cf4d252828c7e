"""Stanford Alpaca's form: three seed tasks open a list of twenty, and one request writes the rest of it."""

from llama_jax.instruct.asking import Asking, Round, bound, unusable
from llama_jax.instruct.generators.requests import Request
from llama_jax.instruct.parsing import alpaca_tasks
from llama_jax.instruct.pool import Candidate
from llama_jax.instruct.tasks import Task

_SHOWN = 3
_LAST = 20
"""Tasks of a list."""


def alpaca_round(asking: Asking, number: int) -> Round:
    """One round: a list for each request. Machine-written tasks are compared with, and never shown."""
    answers = yield [_request(asking, number, place) for place in range(asking.config.requests_per_round)]
    candidates = unusable(answers)
    for answer in filter(lambda answer: answer.is_usable, answers):
        found = list(alpaca_tasks(answer.text, _SHOWN + 1, was_cut=answer.was_cut))
        if not found:
            candidates.append(Candidate.malformed(answer.text, "cut_off" if answer.was_cut else "malformed"))
        for task in found:
            candidates.append(_candidate(asking, task))
    return candidates


def _candidate(asking: Asking, task: Task | str) -> Candidate:
    if isinstance(task, str):
        return Candidate.malformed(task, "malformed")
    if not task.instances[0].output:  # before it is in the pool, where nothing would come of it
        return Candidate(task.instruction, "empty_output")
    candidate = asking.pool.propose(task.instruction)
    if candidate.reason is None:
        candidate.give(task.instances)
    return candidate


def _request(asking: Asking, number: int, place: int) -> Request:
    config, prompts, seeds = asking.config, asking.prompts, asking.pool.seeds
    shown = asking.draw(number, place).sample(list(seeds), min(_SHOWN, len(seeds)))
    text = prompts.alpaca(shown, _LAST, config.domain)
    ending = prompts.continue_alpaca.format(first=len(shown) + 1, total=_LAST)
    return Request(
        asking.put(text, ending),
        bound(config, 3072),
        1.0 if config.temperature is None else config.temperature,
        1.0 if config.top_p is None else config.top_p,
        # A list that goes on after its last number; "20." within a text does not end it.
        stop=(f"\n{_LAST + 1}.", f"###\n{_LAST + 1}") if asking.chats else (f"\n{_LAST}.", f"\n{_LAST} ."),
        seed=asking.request_seed(number, place),
    )
