"""Rows of tokens that small reward models score, and which models and adapters do."""

import numpy as np
from small_llamas import TOKENS

CLASSIFIERS = ("grouped_query", "tied")
"""Of the small LLaMAs."""

ADAPTERS = {
    "score": ("grouped_query", {"target_modules": ["q_proj", "v_proj"]}),
    "tied_score": ("tied", {"target_modules": ["down_proj"], "modules_to_save": ["embed_tokens"]}),
}
"""Base and settings of adapters that make a reward model of it, beside rank 4 and alpha 8."""

PADDING = 96
"""Id of the padding."""

LENGTHS = (48, 31, 7)
"""Tokens of each row."""

ROWS = np.full((len(LENGTHS), max(LENGTHS)), PADDING)
"""Ids [3, 48], padded at their ends."""
for _row, _length in enumerate(LENGTHS):
    ROWS[_row, :_length] = (TOKENS[_row % 2, :_length] + _row) % PADDING
