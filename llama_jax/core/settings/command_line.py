"""From the command line and YAML files to a config instance, and from an exception to an exit code.

Types and `--help` come from jsonargparse, names and places from `settings`. Imports nothing heavy, so that `--help`
is quick."""

import inspect
import json
import os
import select
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from typing import Any, TypeVar, cast, get_args, get_type_hints

import yaml
from jsonargparse import SUPPRESS, ArgumentError, ArgumentParser, Namespace, set_parsing_settings

from llama_jax.core.errors import CannotGoOnError, SavedAfterSignal, UserError, of_the_machine
from llama_jax.core.settings.parser import (
    Commands,
    Schema,
    Setting,
    expected,
    is_list_of_words,
    plain,
    read_argv,
    read_config,
    section_in,
)

set_parsing_settings(docstring_parse_attribute_docstrings=True)

Config = TypeVar("Config")
Presets = Mapping[str, Callable[[str], Any]]
"""For the path of a setting that names a preset, such as `model.size`, a function from the name to the values (a
dictionary or a dataclass) that become the defaults of the same section."""


def parse(
    config_class: type[Config], argv: Sequence[str], *, command: str, commands: Commands, presets: Presets | None = None
) -> Config:
    """The config that `argv` asks for: defaults, then presets, then `--config` files in order, then `--a.b VALUE`.

    Prints and exits with code 0 for `--help` and `--print_config`.

    Raises:
        UserError: a setting is unknown, has the wrong type, is missing, or contradicts another.
    """
    schema = Schema(config_class)
    given = read_argv(argv, schema)
    settings = [s for name in given.configs for s in read_config(name, schema, command, commands)] + given.settings
    values = dict(schema.defaults)
    for path, lookup in (presets or {}).items():
        if path not in values:
            continue
        name = next((s.value for s in reversed(settings) if s.path == path), values[path])
        section = path.rpartition(".")[0]
        values |= {f"{section}.{key}": value for key, value in plain(lookup(str(name))).items()} | {path: name}
    parser = ArgumentParser(prog=f"python -m llama_jax.{command}", exit_on_error=False)
    parser.add_class_arguments(config_class)
    if given.action == "help":
        print(_help(parser, config_class, schema, values))
        raise SystemExit(0)
    for setting in settings:
        _set(values, setting, schema, parser)
    if missing := schema.missing(values):
        raise UserError(f"--{missing[0]}: needed, {expected(schema.types[missing[0]])}")
    config = _construct(config_class, values, "")
    if given.action == "print_config":
        print(to_yaml(config), end="")
        raise SystemExit(0)
    return config


def to_yaml(config: Any) -> str:
    """Every setting of a config as YAML that `--config` reads back to an equal config."""
    lists_for_tuples = json.loads(json.dumps(asdict(config)))  # floats stay exact
    return yaml.safe_dump(lists_for_tuples, sort_keys=False, allow_unicode=True, width=120)


def run_command(
    main: Callable[[Config], int | None],
    config_class: type[Config],
    *,
    command: str,
    commands: Commands,
    presets: Presets | None = None,
    argv: Sequence[str] | None = None,
) -> int:
    """Parse the command line, call `main`, and return the exit code, for `sys.exit`.

    0 done; 2 the user's mistake, one line; 75 saved after a signal; 130 interrupted; 1 anything else, with the
    traceback.
    """
    try:
        arguments = sys.argv[1:] if argv is None else argv
        code = main(parse(config_class, arguments, command=command, commands=commands, presets=presets)) or 0
        sys.stdout.flush()
        return code
    except SavedAfterSignal as saved:
        return _say(str(saved), 75)
    except KeyboardInterrupt:
        return _leave(_say("interrupted", 130))
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _reader_is_gone():
            return 1
        known = error if isinstance(error, UserError | CannotGoOnError) else of_the_machine(error)
        if known is not None:
            return _leave(_say(f"error: {' '.join(str(known).split())}", 2 if isinstance(known, UserError) else 1))
        traceback.print_exc()
        return _leave(1)


def _say(line: str, code: int) -> int:
    print(line, file=sys.stderr)
    return code


def _reader_is_gone() -> bool:
    """Whether the reader of our output, such as `head`, went away; if so, spare the complaint at interpreter exit."""
    try:
        output = sys.stdout.fileno()
    except OSError:  # replaced by something without a descriptor, as in a notebook
        return False
    poll = select.poll()
    poll.register(output, 0)
    if not any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), output)
    return True


def _leave(code: int) -> int:
    """End now when other processes take part: the shutdown barrier would wait minutes for those still in a step."""
    jax = sys.modules.get("jax")
    if jax is not None and jax.distributed.is_initialized():
        from llama_jax.core.processes.distributed import wait_for_leavers  # only here: it is not quick to import

        sys.stdout.flush()
        sys.stderr.flush()
        # Of a mistake all become aware, sooner or later; of an error the watchdog has waited for the others to do so.
        wait_for_leavers(seconds=3 if code == 2 else 1)
        os._exit(code)
    return code


def _help(parser: ArgumentParser, config_class: type, schema: Schema, values: Mapping[str, Any]) -> str:
    description = inspect.getdoc(config_class) or ""
    parser.description = " ".join(description.split())
    for group in parser._action_groups:
        if description.startswith(str(group.title)):  # jsonargparse heads the settings with the first line alone
            group.title = "settings"
    parser.usage = f"{parser.prog} [--config FILE] [--name VALUE ...] [--section.name VALUE ...]"
    parser.set_defaults(dict(values))
    for action in parser._actions:  # what jsonargparse adds beside the settings themselves
        if action.dest in schema.sections or action.option_strings[0].endswith(".help"):
            action.help = SUPPRESS
    parser.add_argument("--config", metavar="FILE", help="A YAML file of settings, or the name of a bundled one.")
    parser.add_argument("--print_config", action="store_true", help="Print every setting as YAML and exit.")
    return parser.format_help()


def _set(values: dict[str, Any], setting: Setting, schema: Schema, parser: ArgumentParser) -> None:
    """Check the type of one setting and put it among the values."""
    path, value, hint = setting.path, setting.value, schema.types.get(setting.path, Any)
    parent, _, name = path.rpartition(".")
    try:
        if parent in schema.types:  # a field of an optional section, or a value by a name: keep the others
            typed = parser.parse_object({parent: {name: value}}, defaults=False)[parent][name]
            values[parent] = {**(values[parent] or {}), name: typed}
        elif isinstance(value, str) and set(get_args(hint)) == {str, type(None)}:
            # jsonargparse would read text such as "# title" as an empty YAML document, that is as None.
            values[path] = None if (setting.origin, value) == ("--", "null") else value
        else:
            if is_list_of_words(hint) and isinstance(value, str) and not value.startswith("["):
                value = [value]  # a list of one need not be written as a list
            typed = parser.parse_object({path: value}, defaults=False)[path]
            values[path] = typed.as_dict() if isinstance(typed, Namespace) else typed
    except ArgumentError:
        shown = json.dumps(value, ensure_ascii=False, default=str)
        raise UserError(f"{setting.origin}{path}: got {shown}, expected {expected(hint)}") from None


def _construct(config_class: type[Config], values: Mapping[str, Any], prefix: str) -> Config:
    arguments = {}
    for name, hint in get_type_hints(config_class).items():
        path = prefix + name
        if is_dataclass(hint):
            arguments[name] = _construct(cast(type, hint), values, f"{path}.")
        else:
            option, value = section_in(hint), values[path]
            arguments[name] = option(**value) if option and value is not None else value
    return config_class(**arguments)
