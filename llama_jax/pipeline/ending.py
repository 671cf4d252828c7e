"""The end of a pipeline: what came of the stages is compared, told, and written down."""

import contextlib
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from etils import epath

from llama_jax.checkpoints.steps.folders import finished_steps
from llama_jax.core.errors import SavedAfterSignal, UserError
from llama_jax.core.files import write_whole
from llama_jax.core.json_files import read_json
from llama_jax.core.processes.distributed import JobStopSignal
from llama_jax.core.settings.command_line import to_yaml
from llama_jax.pipeline.comparison import Comparison, compare
from llama_jax.pipeline.config import RlhfConfig
from llama_jax.pipeline.outcome import Outcome, spent_by, stage_outcome
from llama_jax.pipeline.page import report_page
from llama_jax.pipeline.stages import Stage, result_of
from llama_jax.rl.ppo_config import PpoConfig


def finish(config: RlhfConfig, ppo: PpoConfig, stages: Sequence[Stage]) -> None:
    """Write `comparison.json`, `verdict.json` and `report.html`, and say what is in them.

    Raises:
        SavedAfterSignal: a signal came before the models were compared.
    """
    folder = epath.Path(config.run_dir)
    comparison = _compared(config, ppo, stages, folder / "comparison.json")
    outcomes = [stage_outcome(each.name, result_of(each), is_made=each.elsewhere is None) for each in stages]
    outcome = Outcome(Path(config.run_dir).name, outcomes, spent_by(outcomes[-1], ppo.kl.target), comparison)
    write_whole(folder / "verdict.json", json.dumps(outcome.to_json(), indent=2) + "\n")
    write_whole(folder / "report.html", report_page(outcome, config.comparison.samples))
    for line in outcome.lines():
        print(line, flush=True)
    print(f"verdict.json and report.html are in {folder}", flush=True)
    print(f"try it: python -m llama_jax.chat --model {ppo.run_dir}", flush=True)


def _compared(config: RlhfConfig, ppo: PpoConfig, stages: Sequence[Stage], path: epath.Path) -> Comparison:
    """That of the models as they are: the one that was kept, if it is of the same."""
    results = [result_of(each) for each in stages]
    steps = [finished_steps(epath.Path(place) / "checkpoints")[-1:] for place in results]
    facts = [to_yaml(config.comparison), to_yaml(ppo), *results, *steps]
    digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    if path.exists():
        with contextlib.suppress(UserError):  # damaged: compared again
            if (kept := read_json(path, max_bytes=2**30))["of"] == digest:
                return Comparison.from_json(kept["comparison"])
    print(f"comparing {ppo.run_dir} with {ppo.model}, by their answers to held-out prompts", flush=True)
    with JobStopSignal() as signal:
        found = compare(config.comparison, ppo, ppo.run_dir, lambda: signal.received, _say)
    if found is None or signal.received:
        raise SavedAfterSignal("interrupted: the stages are done; run the same command to compare them")
    write_whole(path, json.dumps({"of": digest, "comparison": found.to_json()}) + "\n")
    return found


def _say(line: str) -> None:
    print(line, flush=True)
