#!/usr/bin/env bash
# jsonargparse: text on the command line that begins with "#" becomes None where the type is str | None.
#
# Versions:  jsonargparse 4.53.0.
# Behaviour: values for optional fields are read as YAML first, and "# title" is a comment, so an empty document, so
#            None. The same text for a field of type str is kept.
# Seen:      str: '# title', str | None: None
# Means:     --prompt "# A heading" runs with the default behaviour of None instead of the prompt, and nothing says so.
#            Declare such fields as str with "" for nothing, or check the raw arguments.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet 'jsonargparse[signatures]==4.53.0'
"$folder/venv/bin/python" - <<'PYTHON'
from dataclasses import dataclass

from jsonargparse import ArgumentParser


@dataclass
class Settings:
    title: str = ""
    prompt: str | None = None


parser = ArgumentParser()
parser.add_class_arguments(Settings, "settings")
given = parser.parse_args(["--settings.title", "# title", "--settings.prompt", "# title"]).settings
print(f"str: {given.title!r}, str | None: {given.prompt!r}")
assert given.title == "# title", "a str is read as YAML now"
assert given.prompt is None, "an optional str keeps its text now"
PYTHON
