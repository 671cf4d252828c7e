"""Magpie (arXiv:2406.08464): an aligned model that is given the opening of a user's turn, and nothing else, writes what
a user would say; then it answers that."""

from llama_jax.instruct.asking import UNUSABLE, Asking, Round, bound, unusable
from llama_jax.instruct.generators.requests import Answer, Request
from llama_jax.instruct.pool import Candidate
from llama_jax.instruct.tasks import Instance

_INSTRUCTION_TOKENS, _ANSWER_TOKENS = 512, 1024


def magpie_round(asking: Asking, number: int) -> Round:
    """One round: an instruction for each request, and an answer to each that is kept."""
    answers = yield [_user_request(asking, number, place) for place in range(asking.config.requests_per_round)]
    candidates = unusable(answers)
    for answer in filter(lambda answer: answer.is_usable, answers):
        said = answer.text.strip()
        whole = said and not answer.was_cut
        candidates.append(
            asking.pool.propose(said) if whole else Candidate.malformed(said, "cut_off" if said else "empty")
        )
    fresh = [candidate for candidate in candidates if candidate.in_pool]
    if fresh:
        written = yield [_answer_request(asking, candidate) for candidate in fresh]
        for candidate, answer in zip(fresh, written, strict=True):
            _give_answer(candidate, answer)
    return candidates


def _user_request(asking: Asking, number: int, place: int) -> Request:
    config = asking.config
    return Request(
        asking.user_opening,
        bound(config, _INSTRUCTION_TOKENS),
        1.0 if config.temperature is None else config.temperature,
        1.0 if config.top_p is None else config.top_p,
        seed=asking.request_seed(number, place),
    )


def _answer_request(asking: Asking, candidate: Candidate) -> Request:
    messages = ({"role": "user", "content": candidate.instruction},)
    return Request(messages, bound(asking.config, _ANSWER_TOKENS), 0.0)


def _give_answer(candidate: Candidate, answer: Answer) -> None:
    if not answer.is_usable or answer.was_cut:
        candidate.reason = "cut_off" if answer.was_cut else UNUSABLE[answer.finish]
    elif not (output := answer.text.strip()):
        candidate.reason = "empty_output"
    else:
        candidate.give([Instance("", output)])
