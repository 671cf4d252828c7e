"""The settings of a config class, and where the command line and YAML files say them.

Knows names and places, so that a mistake is reported as one line that says where it was made; types are checked by
`command_line`."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, fields, is_dataclass, make_dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import yaml

from llama_jax.core.errors import UserError, nearest

Commands = Mapping[str, type]
"""For the name of each command, its config class."""

_PACKAGE = Path(__file__).parents[2]
_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}


class Setting(NamedTuple):
    """One value somebody gave."""

    path: str
    """Dotted name, such as `training.steps`."""
    value: Any
    """Text from the command line; any YAML value from a file."""
    origin: str
    """What precedes the path in a message: `--`, the file and line, or nothing for the first word."""


class CommandLine(NamedTuple):
    """What `sys.argv` says."""

    settings: list[Setting]
    configs: list[str]
    """Values of `--config`, in order."""
    action: Literal["", "help", "print_config"]


class Schema:
    """The settings of a config class by path. Sections (dataclasses that are always there) are not settings; fields of
    an optional section are, and so is the optional section itself."""

    def __init__(self, config_class: Any) -> None:
        self.types: dict[str, Any] = {}
        self.defaults: dict[str, Any] = {}
        """Without the required settings. An optional section is None or a dictionary."""
        self.sections: set[str] = set()
        self.first_word: str | None = None
        """The setting, if any, that a first argument without dashes is the value of: its field has `first_word` among
        its metadata."""
        self._add(config_class, "", MISSING)

    def _add(self, config_class: Any, prefix: str, section: Any) -> None:
        hints = get_type_hints(config_class)
        for field in fields(config_class):
            path, hint = prefix + field.name, hints[field.name]
            default = getattr(section, field.name, field.default)
            if default is MISSING and field.default_factory is not MISSING:
                default = field.default_factory()
            if is_dataclass(hint):
                self.sections.add(path)
                self._add(hint, f"{path}.", default)
                continue
            self.types[path] = hint
            if field.metadata.get("first_word"):
                self.first_word = path
            if default is not MISSING:
                self.defaults[path] = plain(default)
            if option := section_in(hint):
                self.types |= {f"{path}.{name}": inner for name, inner in get_type_hints(option).items()}

    def check(self, setting: Setting) -> None:
        """Raise a UserError when there is no such setting."""
        path, place = setting.path, f"{setting.origin}{setting.path}"
        if path in self.sections:
            inside = next(known for known in self.types if known.startswith(f"{path}."))
            raise UserError(f"{place}: a section, not a setting; set what is in it, such as '{inside}'")
        if path not in self.types and not is_mapping(self.types.get(path.partition(".")[0])):
            last = [known for known in self.types if known.split(".")[-1] == path.split(".")[-1]]
            hint = f"; did you mean '{last[0]}'?" if last else nearest(path, self.types)
            raise UserError(f"{place}: unknown setting{hint}")

    def missing(self, values: Mapping[str, Any]) -> list[str]:
        """Required settings that have no value."""
        return [path for path in self.types if path not in values and path.rpartition(".")[0] not in self.types]


def composed(own: type, other: type, description: str | None = None) -> type:
    """A frozen dataclass with the settings of both, those of `other` first, and the checks of both, those of `own`
    first.

    Args:
        description: what `--help` says of the command; None: the docstring of `own`.
    """

    def check(config: Any) -> None:
        for part in (own, other):
            getattr(part, "__post_init__", lambda config: None)(config)

    namespace = {"__doc__": description or own.__doc__, "__module__": __name__, "__post_init__": check}
    return make_dataclass(f"{own.__name__}Of{other.__name__}", [], bases=(own, other), namespace=namespace, frozen=True)


def plain(value: Any) -> Any:
    """A dataclass as a dictionary; anything else as it is."""
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


def section_in(hint: Any) -> Any:
    """The dataclass in `Section | None`; None for other types."""
    return next(filter(is_dataclass, get_args(hint)), None)


def is_mapping(hint: Any) -> bool:
    """Whether a setting takes values by names of their own, `--setting.NAME VALUE`, which somebody else checks."""
    return get_origin(hint) is Mapping


def is_list_of_words(hint: Any) -> bool:
    """Whether a type is a list of any length whose elements are no lists themselves."""
    options = get_args(hint)
    return get_origin(hint) is tuple and options[-1] is Ellipsis and get_origin(options[0]) is not tuple


def expected(hint: Any) -> str:
    """A type in plain words."""
    origin, options = get_origin(hint), get_args(hint)
    if origin is Literal:
        return f"one of {', '.join(map(str, options))}"
    if origin in (tuple, list):
        if origin is list or options[-1] is Ellipsis:
            return f"a list of {expected(options[0])}"
        return f"[{', '.join(map(expected, options))}]"
    if is_mapping(hint):
        return "values by their names"
    if is_dataclass(hint):
        return f"a section with {', '.join(field.name for field in fields(hint))}"
    return " or ".join(map(expected, options)) if options else _WORDS.get(hint, str(hint))


def read_argv(argv: Sequence[str], schema: Schema) -> CommandLine:
    """Parse the arguments: `--name VALUE`, `--name=VALUE`, bare `--name` for true-or-false settings, and a first
    word for the setting that takes it.

    Raises:
        UserError: a setting is unknown or has no value, or an argument belongs to none.
    """
    settings: list[Setting] = []
    configs: list[str] = []
    action: Literal["", "help", "print_config"] = ""
    rest = list(argv)
    while rest:
        argument = rest.pop(0)
        name, equals, value = argument.removeprefix("--").partition("=")
        if argument in ("-h", "--help"):
            action = "help"
        elif argument == "--print_config":
            action = action or "print_config"
        elif not argument.startswith("--") and schema.first_word and len(rest) == len(argv) - 1:
            settings.append(Setting(schema.first_word, argument, ""))
        elif not argument.startswith("--"):
            raise UserError(f"{argument}: unexpected; settings are written --name VALUE or --section.name VALUE")
        else:
            if name != "config":
                schema.check(Setting(name, value, "--"))
            if not equals:
                bare = schema.types.get(name) is bool and (not rest or rest[0].lower() not in ("true", "false"))
                if not bare and (not rest or rest[0].startswith("--")):
                    raise UserError(f"--{name}: needs a value, {expected(schema.types.get(name, str))}")
                value = "true" if bare else rest.pop(0)
            if name == "config":
                configs.append(value)
            else:
                settings.append(Setting(name, value, "--"))
    return CommandLine(settings, configs, action)


def read_config(name: str, schema: Schema, command: str, commands: Commands) -> list[Setting]:
    """The settings of a YAML file, or of the bundled config of that name.

    Raises:
        UserError: there is no such file, it is not valid, has unknown settings, or belongs to another command.
    """
    file, text = _config_text(name)
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return []
        if not isinstance(node, yaml.MappingNode):
            raise UserError(f"{file}: not a config; expected settings such as 'training: {{steps: 100}}'")
        _check_command({str(key.value).split(".")[0] for key, _ in node.value}, file, command, commands)
        return list(_flatten(loader, node, "", file, schema))
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError(f"{file}:{line}: not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{file}: not valid YAML: {error}") from None


def command_for(name: str, argv: Sequence[str], commands: Commands) -> str:
    """The command, or its second word where only with that the keys of all config files among the arguments are
    known."""
    variants = [each for each in commands if each == name or each.startswith(f"{name} ")]
    if len(variants) == 1:
        return name
    files = [value for before, value in itertools.pairwise(argv) if before == "--config"]
    files += [argument.removeprefix("--config=") for argument in argv if argument.startswith("--config=")]
    try:
        keys = {key.split(".")[0] for file in files for key in yaml.safe_load(_config_text(file)[1]) or {}}
    except (UserError, yaml.YAMLError, AttributeError, TypeError):
        return name  # what is wrong with the file is said where it is read
    return next((each for each in variants if _knows(commands[each], keys)), name)


def _knows(config_class: Any, keys: set[str]) -> bool:
    return keys <= {field.name for field in fields(config_class)}


def _config_text(name: str) -> tuple[str, str]:
    """The file that `--config NAME` means and what is in it."""
    folders = [_PACKAGE / "configs", _PACKAGE.parent / "configs"]  # in a wheel; in a checkout
    bundled = [folder / (name if name.endswith(".yaml") else f"{name}.yaml") for folder in folders]
    try:
        if "://" in name:
            from etils import epath  # only here: it would slow down every --help

            return name, epath.Path(name).read_text()
        for path in (Path(name), *bundled):
            if path.is_file():
                return str(path), path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--config {name}: cannot be read: {error}") from None
    known = [p.relative_to(f).with_suffix("").as_posix() for f in folders if f.is_dir() for p in f.rglob("*.yaml")]
    raise UserError(f"--config {name}: neither a file nor a bundled config{nearest(name, known)}")


def _check_command(keys: set[str], file: str, command: str, commands: Commands) -> None:
    """Raise a UserError when the top-level keys of a file fit another command and not this one."""
    if _knows(commands[command], keys):
        return
    if other := next((each for each, known in commands.items() if _knows(known, keys)), None):
        raise UserError(f"{file} is a config for '{other}', not for '{command}'")


def _flatten(
    loader: yaml.SafeLoader, node: yaml.MappingNode, prefix: str, file: str, schema: Schema
) -> Iterator[Setting]:
    seen: set[str] = set()
    for key, value in node.value:
        path, origin = f"{prefix}{key.value}", f"{file}:{key.start_mark.line + 1}: "
        if path in seen:
            raise UserError(f"{origin}{path}: given twice in this file")
        seen.add(path)
        inside = any(known.startswith(f"{path}.") for known in schema.types)
        if inside and isinstance(value, yaml.MappingNode) and (value.value or path in schema.sections):
            yield from _flatten(loader, value, f"{path}.", file, schema)
            continue
        setting = Setting(path, loader.construct_object(value, deep=True), origin)
        if not (path in schema.sections and setting.value is None):  # a section all of whose lines are comments
            schema.check(setting)
            yield setting
