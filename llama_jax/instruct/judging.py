"""Answers scored by a model, from 0 to 5, for reward models that learn a score (ChatLLaMA's generate_rewards). 0 is a
score as any other; where the model gives none, it is null."""

import re
from collections.abc import Generator as Steps
from collections.abc import Sequence
from typing import Any, Literal

from llama_jax.core.errors import UserError
from llama_jax.core.processes.signals import StopSignal
from llama_jax.core.run_directory import open_run
from llama_jax.data.instructions.records import conversation_of, format_of, unknown_format
from llama_jax.data.sources.bad_records import BadRecords
from llama_jax.data.sources.documents import BadRecordError
from llama_jax.data.sources.opening import errors_of, read_records
from llama_jax.data.sources.record_text import Record, good_text
from llama_jax.instruct.asking import bound, numbered_seed, played
from llama_jax.instruct.config import JudgeConfig
from llama_jax.instruct.generators.opening import FREE, check_local, opened_generator
from llama_jax.instruct.generators.requests import Answer, Request
from llama_jax.instruct.ledger import RoundFiles

_TOKENS = 16
_ROUND = 64
_MOST_BAD = 0.01
_ASK: dict[Literal["english", "chinese"], tuple[str, str, str]] = {
    "english": (
        "You are given what a person said to an assistant, and the assistant's answer. Score the answer with a number "
        "from 0 (useless or harmful) to 5 (could not be better), by how {criteria} it is.\n\nThe person said:\n"
        "{asked}\n\nThe assistant answered:\n{answer}\n\nWrite the number alone.",
        "helpful, correct, complete, clear and harmless",
        "Score:",
    ),
    "chinese": (
        "下面是一个人对助手说的话，以及助手的回答。请按照回答是否{criteria}，用0到5的数字给回答打分，0表示无用或者有害，5表示不能更好。\n\n"
        "这个人说：\n{asked}\n\n助手回答：\n{answer}\n\n只写数字。",
        "有帮助、正确、完整、清楚、无害",
        "分数：",
    ),
}
_SCORE = re.compile(r"(?<![\d.])(\d+(?:\.\d+)?)(?![\d.]*\d)")


def score_answers(config: JudgeConfig) -> dict[str, Any]:
    """Write scores.jsonl: each question and answer (`user_input`, `completion`) with its `score`.

    Returns:
        What the command prints as JSON.

    Raises:
        UserError: the answers to score, the model or the endpoint cannot be used.
        SavedAfterSignal: the run was asked to end.
        CannotGoOnError: the endpoint is out of reach, or the budget is spent.
    """
    check_local(config.run_dir)
    with open_run(config.run_dir, config, command="self_instruct judge", free=FREE) as run, StopSignal() as stop:
        pairs = _pairs(config, run.say)
        with opened_generator(config, run, lambda: stop.received) as opened:
            files = RoundFiles(run, "scores")
            try:
                for first in range(len(files.rounds) * _ROUND, len(pairs), _ROUND):
                    batch = pairs[first : first + _ROUND]
                    scores, taken = played(_scored(config, batch, first, opened.chats), opened.answers)
                    for (asked, answer), score in zip(batch, scores, strict=True):
                        files.write("scores", {"user_input": asked, "completion": answer, "score": score})
                    files.end_round(taken | {"scored": sum(score is not None for score in scores)})
                    run.say(f"{first + len(batch)} of {len(pairs)} answers")
            finally:
                files.close()
            found = [line["score"] for line in files.read("scores") if line["score"] is not None]
        mean = sum(found) / len(found) if found else None
        run.say(
            f"{files.paths['scores']}: {len(found)} of {len(pairs)} answers have a score"
            + ("" if mean is None else f", {mean:.2f} on average")
        )
        return {"answers": len(pairs), "scored": len(found), "mean_score": mean} | opened.totals


def score_in(text: str) -> float | None:
    """The score that an answer gives: its first number, if that lies between 0 and 5."""
    found = _SCORE.search(text)
    score = float(found[1]) if found else -1.0
    return score if 0 <= score <= 5 else None


def _scored(
    config: JudgeConfig, pairs: Sequence[tuple[str, str]], first: int, chats: bool
) -> Steps[list[Request], list[Answer], list[float | None]]:
    ask, criteria, opening = _ASK[config.prompt_language]
    requests = []
    for number, (asked, answer) in enumerate(pairs, first):
        text = ask.format(criteria=config.criteria or criteria, asked=asked, answer=answer)
        prompt = ({"role": "user", "content": text},) if chats else f"{text}\n\n{opening}"
        # A score is read off the model, not drawn: 0 unless asked for otherwise.
        temperature, top_p = config.temperature or 0.0, 1.0 if config.top_p is None else config.top_p
        seed = numbered_seed(config.seed, number)
        requests.append(Request(prompt, bound(config, _TOKENS), temperature, top_p, seed=seed))
    answers = yield requests
    return [score_in(answer.text) for answer in answers]


def _pairs(config: JudgeConfig, say: Any) -> list[tuple[str, str]]:
    """What was asked and what was answered, of each record."""
    bad = BadRecords(config.data, "skip", _MOST_BAD, settings=None, say=say)
    records = read_records(config.data, bad)
    found: list[tuple[str, str]] = []
    for record in records:
        try:
            found.append(_pair(record, config.data))
        except BadRecordError as error:
            bad.note(error)
    bad.check(len(records) + bad.total, "records")
    if not found:
        raise UserError(f"--data {config.data}: holds no answer")
    return found


def _pair(record: Record, source: str) -> tuple[str, str]:
    values = record.values
    if {"user_input", "completion"} <= set(values):
        texts = [good_text(values[name], name, record.place) for name in ("user_input", "completion")]
        return texts[0], texts[1]
    form = format_of(values)
    if form is None or form == "text":
        with errors_of("--data"):
            raise unknown_format(source, list(values))
    turns = conversation_of(record, form)
    assert not isinstance(turns, str)  # which is of the form `text` alone
    *before, answer = turns
    said = [f"{turn.content}\n\n{turn.input}" if turn.input else turn.content for turn in before]
    if len(said) == 1:
        return said[0], answer.content
    return "\n\n".join(f"{turn.role}: {text}" for turn, text in zip(before, said, strict=True)), answer.content
