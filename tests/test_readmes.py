"""The READMEs: links lead somewhere, commands are read without an error, every recipe has its row."""

import re
import shlex
from pathlib import Path

import pytest

from llama_jax.config import COMMANDS, PRESETS
from llama_jax.core.settings.command_line import parse
from llama_jax.core.settings.parser import command_for

ROOT = Path(__file__).parents[1]
READMES = [
    ROOT / "README.md",
    *(path for part in ("configs", "llama_jax") for path in ROOT.glob(f"{part}/**/README.md")),
]
RECIPES = {path.relative_to(ROOT / "configs").with_suffix("").as_posix() for path in ROOT.glob("configs/**/*.yaml")}


def commands_of(readme: Path) -> list[list[str]]:
    """The words of every command of llama_jax in the blocks of a README, also those behind `run_tpu.sh … --`."""
    found = []
    for block in re.findall(r"```bash\n(.*?)```", readme.read_text(encoding="utf-8"), re.DOTALL):
        for line in re.split(r"\n|&&", block.replace("\\\n", " ")):
            words = shlex.split(line, comments=True)
            starts = [i + 1 for i, word in enumerate(words) if word in ("llama-jax", "--")]
            starts += [i + 1 for i, word in enumerate(words) if word == "-m" and words[i + 1].startswith("llama_jax.")]
            found += [[words[i].removeprefix("llama_jax."), *words[i + 1 :]] for i in starts]
    return found


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.parent.name)
def test_links_lead_somewhere(readme: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", readme.read_text(encoding="utf-8"))
    assert [link for link in links if not (readme.parent / link).exists()] == []


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.parent.name)
def test_commands_are_read_without_an_error(readme: Path) -> None:
    for command, *arguments in commands_of(readme):
        if arguments and f"{command} {arguments[0]}" in COMMANDS:
            name = f"{command} {arguments.pop(0)}"
        else:
            name = command_for(command, arguments, COMMANDS)
        try:
            parse(COMMANDS[name], arguments, command=name, commands=COMMANDS, presets=PRESETS)
        except SystemExit as done:  # of --help and --print_config
            assert done.code == 0


def test_the_errors_that_are_explained_are_those_of_the_code() -> None:
    page = (ROOT / "llama_jax" / "runs" / "README.md").read_text(encoding="utf-8")
    ours = page[page.index("| of a run | |") : page.index("| of JAX, XLA")]
    code = (ROOT / "run_tpu.sh").read_text(encoding="utf-8") + "".join(
        path.read_text(encoding="utf-8") for path in (ROOT / "llama_jax").glob("**/*.py")
    )
    code = re.sub(r'"\s*\n\s*f?"', "", code)  # a text over several lines
    explained = re.findall(r"^\| `(.*?)` \|", ours, re.MULTILINE)
    assert len(explained) > 20
    parts = [part.removeprefix("error: ").strip(" ();:") for text in explained for part in text.split("…")]
    assert [part for part in parts if part not in code] == []


def test_every_command_is_on_the_first_page() -> None:
    assert {name.split()[0] for name in COMMANDS} == {command for command, *_ in commands_of(READMES[0])}


def test_every_recipe_has_its_row() -> None:
    rows = re.findall(r"^\| (`.*?) \|", (ROOT / "configs" / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    named = [name for row in rows for name in re.findall(r"`([\w/]+)`", row)]
    assert sorted(named) == sorted(RECIPES)


def test_the_first_page_is_a_page() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 200
