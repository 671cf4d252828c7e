"""One evaluation from its settings to its result: the model is opened, the task measured, the result written."""

import dataclasses
import json
import time
from collections.abc import Mapping
from typing import IO, Any

import jax

from llama_jax.checkpoints.opening import ANY, TEXT, find_model, open_named
from llama_jax.core.errors import UserError
from llama_jax.core.files import write_whole
from llama_jax.core.mesh import make_mesh
from llama_jax.core.processes.distributed import is_main_process, main_process_printer, start_up
from llama_jax.data.sources.bad_records import counted
from llama_jax.data.sources.opening import read_records
from llama_jax.evals import perplexity, preference, record_tasks
from llama_jax.evals.config import EvaluateConfig
from llama_jax.evals.instructions import load_judge
from llama_jax.evals.kept_samples import output_file
from llama_jax.evals.session import WITHOUT_INFLUENCE, Session, bad_records_of, params_fingerprint


def evaluate_model(config: EvaluateConfig, stream: IO[str]) -> dict[str, Any]:
    """Measure what the settings name; every process calls this, and the main one writes `config.output`.

    Args:
        stream: where people read what is happening.
    """
    say = main_process_printer(stream)
    who = start_up(config.distributed)
    mesh = make_mesh(config.mesh)
    output = output_file(config.output)
    records, bad = [], bad_records_of(config, config.data or "", say)
    if config.data is not None and config.task not in ("perplexity", "preference"):
        records = read_records(config.data, bad)  # a mistake in it is reported before a model is opened
    judge = load_judge(config.judge) if config.judge is not None else None
    with jax.set_mesh(mesh):
        writes = config.task != "preference"
        path = find_model(config.model, say, config.adapters, TEXT if writes else ANY)
        config = dataclasses.replace(config, model=path)
        opened = open_named(config, say, writes=writes)
        say(who)
        started = time.perf_counter()
        session = Session(config, opened, output, stream, say, params_fingerprint(opened.params))
        if config.task == "perplexity":
            found = perplexity.evaluate(session)
        elif config.task == "preference":
            found = preference.evaluate(session)
        elif config.task.startswith("lm_eval:"):
            found = _lm_eval(session)
        else:
            found = record_tasks.evaluate(session, records, bad, judge)
        found["seconds"] = time.perf_counter() - started
    settings = dataclasses.asdict(config).items()
    result = {
        "task": config.task,
        "model": opened.source,
        "data": config.data,
        **found,
        "config": {name: value for name, value in settings if name not in WITHOUT_INFLUENCE},
        "model_fingerprint": session.model_fingerprint,
        "tokenizer_fingerprint": opened.tokenizer.fingerprint,
    }
    say(f"{opened.source}, {config.task}: {_in_words(result)}")
    if output is not None and is_main_process():
        write_whole(output, json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    return result


def _lm_eval(session: Session) -> dict[str, Any]:
    try:
        from llama_jax.evals import harness  # an extra
    except ImportError as error:
        raise UserError(f"--task {session.config.task}: {error}; pip install 'llama_jax[eval]'") from None
    return harness.evaluate(session)


def _in_words(result: Mapping[str, Any]) -> str:
    """Metrics with their standard errors, and how much was measured in what time."""
    parts = [f"{result['documents']} documents in {result['seconds']:.1f} s"] if "documents" in result else []
    if result.get("truncated"):
        parts.append(f"{result['truncated']} of {result['requests']} requests truncated")
    if result.get("skipped"):
        parts.append(f"{result['skipped']} records have no answer")
    if result.get("dropped_records"):
        parts.append(f"bad records left out: {counted(result['dropped_records'])}")
    for name, value in result.items():
        if isinstance(value, float) and not name.endswith("_stderr") and name != "seconds":
            error = result.get(f"{name}_stderr")
            parts.append(f"{name} {value:.4f}" + ("" if error is None else f" ± {error:.4f}"))
    for task, metrics in result.get("results", {}).items():
        numbers = {name: value for name, value in metrics.items() if isinstance(value, float) and "stderr" not in name}
        parts += [f"{task} {name} {value:.4f}" for name, value in numbers.items()]
    return ", ".join(parts)
