"""Settings of two config classes in one command."""

from dataclasses import dataclass, fields

import pytest

from llama_jax.core.errors import UserError
from llama_jax.core.settings.command_line import parse
from llama_jax.core.settings.parser import composed


@dataclass(frozen=True)
class Shown:
    """Show a box."""

    times: int = 1
    """How often to show it."""

    def __post_init__(self) -> None:
        if self.times < 1:
            raise UserError(f"--times {self.times}: must be at least 1")


@dataclass(frozen=True)
class Box:
    """Make a box."""

    width: int = 2
    """Metres from left to right."""


@dataclass(frozen=True)
class Labelled(Box):
    """Make a box with a label."""

    label: str = "box"
    """Words on it."""

    def __post_init__(self) -> None:
        if not self.label:
            raise UserError("--label: must not be empty")


def parsed(settings: type, *arguments: str):
    return parse(settings, arguments, command="show", commands={"show": settings})


def test_settings_are_those_of_both_the_other_command_first() -> None:
    both = composed(Shown, Labelled)
    assert [field.name for field in fields(both)] == ["width", "label", "times"]
    config = parsed(both, "--times", "3", "--label", "b")
    assert isinstance(config, Shown) and isinstance(config, Labelled)
    assert (config.width, config.label, config.times) == (2, "b", 3)


@pytest.mark.parametrize("arguments", [("--times", "0"), ("--label", "")])
def test_both_check_their_settings(arguments: tuple[str, str]) -> None:
    with pytest.raises(UserError, match=f"^{arguments[0]}"):
        parsed(composed(Shown, Labelled), *arguments)


def test_a_class_without_checks_is_composed_too() -> None:
    with pytest.raises(UserError, match=r"^--times 0"):
        parsed(composed(Shown, Box), "--times", "0")


def test_help_has_the_docstrings_of_both(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        parsed(composed(Shown, Labelled), "--help")
    printed = capsys.readouterr().out
    for words in ("How often to show it.", "Metres from left to right.", "Words on it."):
        assert words in printed


def test_the_description_is_its_own_or_the_one_given() -> None:
    assert composed(Shown, Box).__doc__ == "Show a box."
    assert composed(Shown, Box, "Show any box.").__doc__ == "Show any box."
