"""A run of Self-Instruct from its settings to its report: rounds of a form, until there are enough tasks."""

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from llama_jax.core.files import write_whole
from llama_jax.core.processes.signals import StopSignal
from llama_jax.core.recording.terminal import LiveLine
from llama_jax.core.run_directory import RunDirectory, open_run
from llama_jax.instruct.asking import Asking, Round, played
from llama_jax.instruct.config import FormName, SelfInstructConfig
from llama_jax.instruct.filters import InstructionFilter
from llama_jax.instruct.forms.alpaca import alpaca_round
from llama_jax.instruct.forms.magpie import magpie_round
from llama_jax.instruct.forms.original import original_round
from llama_jax.instruct.generators.opening import FREE, Opened, check_local, opened_generator
from llama_jax.instruct.languages import language
from llama_jax.instruct.ledger import Ledger
from llama_jax.instruct.pool import Candidate, Pool
from llama_jax.instruct.prompts import PROMPTS
from llama_jax.instruct.report.drawing import draw_report
from llama_jax.instruct.report.numbers import report
from llama_jax.instruct.report.page import report_page
from llama_jax.instruct.tasks import read_seeds

_FORMS: Mapping[FormName, Callable[[Asking, int], Round]] = {
    "original": original_round,
    "alpaca": alpaca_round,
    "magpie": magpie_round,
}


def write_tasks(config: SelfInstructConfig) -> dict[str, Any]:
    """Write tasks into the run directory, with a report of them; goes on where an earlier life was stopped.

    Returns:
        What the command prints as JSON.

    Raises:
        UserError: a setting, the seed tasks, the model or the endpoint cannot be used.
        SavedAfterSignal: the run was asked to end.
        CannotGoOnError: the endpoint is out of reach, or the budget is spent; the report is of what there is.
    """
    check_local(config.run_dir)
    seeds = read_seeds(config.seed_tasks)
    told = language(config.language)
    pool = Pool(seeds, told, InstructionFilter(config.filters, told, config.form), config.filters.max_similarity)
    with open_run(config.run_dir, config, command="self_instruct", free=FREE) as run, StopSignal() as stop:
        with opened_generator(config, run, lambda: stop.received, continues_chats=config.form == "magpie") as opened:
            opening = opened.user_opening if config.user_opening is None else config.user_opening
            asking = Asking(config, PROMPTS[config.prompt_language], told, pool, opened.chats, opening or "")
            ledger = Ledger(run, seeds if config.include_seeds else ())
            for _, candidate in ledger.candidates:
                if candidate.in_pool:
                    pool.accept(candidate)
            try:
                _write_rounds(asking, opened, ledger, run)
            finally:
                ledger.close()
                result = _write_report(asking, ledger, run)
        return result | opened.totals


def _write_rounds(asking: Asking, opened: Opened, ledger: Ledger, run: RunDirectory) -> None:
    config, line, started = asking.config, LiveLine(run.say), time.monotonic()
    if ledger.rounds:
        run.say(f"going on after round {len(ledger.rounds)}, with {len(ledger.kept)} tasks")

    def state() -> str:
        requests, proposed = _requests(ledger), len(ledger.candidates)
        share = f"{len(ledger.kept) / proposed:.0%} of {proposed} kept" if proposed else "none proposed"
        price = f", ${opened.spent:.4f}" if opened.spent else ""
        return (
            f"round {len(ledger.rounds)}: {requests} requests, {len(ledger.kept)} of {config.tasks} tasks ({share})"
            f"{price}, {time.monotonic() - started:.0f} s"
        )

    try:
        while not _is_done(config, ledger):
            candidates, numbers = played(_FORMS[config.form](asking, len(ledger.rounds) + 1), opened.answers)
            ledger.add(candidates, numbers | {"proposed": len(candidates), "kept": _kept(candidates)})
            line.update(state)
    finally:
        line.close(state())


def _is_done(config: SelfInstructConfig, ledger: Ledger) -> bool:
    most, last = config.max_requests, ledger.rounds[-config.patience :]
    is_idle = len(last) == config.patience and not any(record["kept"] for record in last)
    return len(ledger.kept) >= config.tasks or (most is not None and _requests(ledger) >= most) or is_idle


def _requests(ledger: Ledger) -> int:
    return sum(record["requests"] for record in ledger.rounds)


def _kept(candidates: list[Candidate]) -> int:
    return sum(candidate.reason is None for candidate in candidates)


def _write_report(asking: Asking, ledger: Ledger, run: RunDirectory) -> dict[str, Any]:
    found = report(ledger.rounds, ledger.candidates, asking.pool.seeds, asking.language)
    every = [candidate for _, candidate in ledger.candidates]
    svgs = [draw_report(found, "svg"), draw_report(found, "svg", seeds=True)]
    write_whole(run.path / "report.json", json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    write_whole(run.path / "report.png", draw_report(found, "png"))
    write_whole(run.path / "report.html", report_page(run.path.name, found, every, svgs))
    funnel = found["funnel"]
    counts = f"{funnel['examples']} examples of {funnel['kept']} tasks, of {funnel['proposed']} proposed"
    dropped = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in funnel["dropped"].items())
    why = f" (dropped: {dropped})" if dropped else ""
    run.say(f"{ledger.tasks_path}: {counts}{why}; {run.path / 'report.html'}")
    if ledger.rounds and not funnel["kept"]:
        run.say(
            "nothing was kept: it takes a model that follows instructions, and has room for the prompt in its context"
        )
    return {"tasks": str(ledger.tasks_path), **funnel}
