#!/usr/bin/env bash
# grain: the state of ConcatThenSplit, once it has been JSON, resumes with tokens missing at the start of the data.
#
# Versions:  grain 0.2.18.
# Behaviour: the iterator's state marks "no remainder" by the tuple (-1, -1) and compares it with a tuple. JSON returns
#            the list [-1, -1], which is not equal, so that an element is cut away as if it had been consumed. The same
#            state passed on as it is resumes exactly, as do the states of FirstFitPack and BestFitPack either way.
# Seen:      after 1 row: as it is True, through JSON False
# Means:     a data position kept as JSON, the usual way for these dictionaries of numbers, loses data silently. Turn
#            the lists below "remainder_slices" into tuples after reading.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet grain==0.2.18
"$folder/venv/bin/python" - <<'PYTHON'
import json

import grain
import numpy as np

LENGTHS = (3, 5, 2, 7, 4, 6, 1, 8, 3, 5)


def rows():
    documents = [{"tokens": np.full(length, number)} for number, length in enumerate(LENGTHS, 1)]
    source = grain.MapDataset.source(documents).to_iter_dataset()
    return iter(grain.experimental.ConcatThenSplitIterDataset(source, length_struct={"tokens": 8}))


def tokens(iterator):
    return [row["tokens"].tolist() for row in iterator]


def resumed(state):
    iterator = rows()
    iterator.set_state(state)
    return tokens(iterator)


whole, seen = tokens(rows()), []
for consumed in range(len(whole)):
    iterator = rows()
    for _ in range(consumed):
        next(iterator)
    state = iterator.get_state()
    exact, through_json = (resumed(each) == whole[consumed:] for each in (state, json.loads(json.dumps(state))))
    print(f"after {consumed} rows: as it is {exact}, through JSON {through_json}; {state}")
    seen.append((exact, through_json))
assert all(exact for exact, _ in seen), "the state itself no longer resumes exactly"
assert not all(through_json for _, through_json in seen), "JSON keeps the state now"
PYTHON
