#!/usr/bin/env bash
# tokenizers: the pre-tokenizer Digits and the pattern \p{N} of the same library disagree on what a digit is.
#
# Versions:  tokenizers 0.23.3.
# Behaviour: Digits asks Rust's standard library whether a character is numeric, patterns ask Oniguruma. Their tables
#            are of different versions of Unicode: 13 characters that Unicode 17 added (U+11DE0 to U+11DE9, digits of
#            Tolong Siki, and U+16FF4 to U+16FF6) are digits to the first only.
# Seen:      Digits 1924 characters, \p{N} 1911
# Means:     a tokenizer.json with Digits (SmolLM's, StarCoder's) cannot be rewritten with one pattern, nor run by a
#            library of patterns, without asking about each character first; ids of new characters also change with
#            the release that built the wheel.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tokenizers==0.23.3
"$folder/venv/bin/python" - <<'PYTHON'
import sys

from tokenizers import Regex
from tokenizers.pre_tokenizers import Digits, Split

CHUNK = 20_000
characters = [chr(code) for code in range(1, sys.maxunicode + 1) if not 0xD800 <= code <= 0xDFFF]


def split_off(splitter):
    """The characters that a pre-tokenizer makes a piece of their own, between two NULs."""
    found = set()
    for start in range(0, len(characters), CHUNK):
        pieces = splitter.pre_tokenize_str("\0".join(("", *characters[start : start + CHUNK], "")))
        found |= {piece for piece, _ in pieces if "\0" not in piece}
    return found


digits = split_off(Digits(individual_digits=True))
matched = split_off(Split(Regex(r"\p{N}"), "isolated"))
print(f"Digits {len(digits)} characters, \\p{{N}} {len(matched)}")
print("to Digits alone:", *(f"U+{ord(each):04X}" for each in sorted(digits - matched)))
assert matched <= digits, "patterns know digits now that Digits does not"
assert len(digits - matched) == 13, "the tables have become others"
PYTHON
