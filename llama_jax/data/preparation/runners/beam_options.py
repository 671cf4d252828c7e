"""Options of Apache Beam: from settings to Beam's own command line, checked by Beam's own parser."""

import contextlib
import logging
import os
from argparse import Action, ArgumentParser
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, NoReturn

from llama_jax.core.errors import UserError, nearest

_OF_THIS_MACHINE = "FnApiRunner"
"""Beam's runner of this machine. `DirectRunner` is one that first tries to download another, and then takes this."""
_LOCAL = {"fnapirunner", "directrunner", "direct", "bundlebaseddirectrunner", "switchingdirectrunner"}


class BeamOptions(NamedTuple):
    """How Beam is to be run."""

    arguments: list[str]
    """As on Beam's command line."""
    is_local: bool
    """Whether all workers are processes that Beam starts on this machine."""


def beam_options(given: Mapping[str, Any], workers: int | None) -> BeamOptions:
    """What `--beam.OPTION VALUE` asks for. Without `runner`, the work is done by processes of this machine.

    Args:
        given: Values by the names of Beam's options: texts, numbers, lists of them, true or false.
        workers: Processes on this machine, where no option says that; None: one for each processor.

    Raises:
        UserError: Beam is not installed, has no such option, or refuses a value.
    """
    try:
        with _no_warnings():  # of libraries of Google's, which only some need
            from apache_beam import Pipeline
            from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError:
        raise UserError("--runner beam: needs Apache Beam; pip install 'llama_jax[beam]'") from None
    parsers: list[ArgumentParser] = []
    PipelineOptions([]).get_all_options(add_extra_args_fn=parsers.append)  # by which Beam reads its command line
    known = {text.removeprefix("--"): action for action in parsers[0]._actions for text in action.option_strings}
    runner = str(given.get("runner", _OF_THIS_MACHINE))
    is_local = runner.lower().rpartition(".")[2] in _LOCAL
    values = {"runner": runner, **given}
    if is_local:
        count = (os.cpu_count() or 1) if workers is None else workers
        alone = {"direct_num_workers": 1, "direct_running_mode": "in_memory"}
        several = {"direct_num_workers": count, "direct_running_mode": "multi_processing"}
        values = {**(several if count else alone), **values}
    arguments = []
    for name, value in values.items():
        if name not in known:
            raise UserError(f"--beam.{name}: Apache Beam has no such option{nearest(name, known)}")
        arguments += _arguments(name, value, known[name])
    parsers[0].error = _refuse
    parsers[0].parse_args(arguments)
    try:
        with _no_warnings():
            Pipeline(options=PipelineOptions(arguments))  # finds the runner, and whether it has what it needs
    except (ImportError, ValueError) as error:
        raise UserError(f"--beam.runner {runner}: {' '.join(str(error).split())}") from None
    return BeamOptions(arguments, is_local)


@contextlib.contextmanager
def _no_warnings() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _arguments(name: str, value: Any, action: Action) -> list[str]:
    if action.nargs == 0:  # a flag, of which Beam's command line knows that it is there
        if str(value).lower() not in ("true", "false"):
            raise UserError(f"--beam.{name} {value}: is true or false")
        return [f"--{name}"] if str(value).lower() == "true" else []
    return [f"--{name}={each}" for each in (value if isinstance(value, list | tuple) else [value])]


def _refuse(message: str) -> NoReturn:
    raise UserError(f"--beam.{message.removeprefix('argument --')}")
