"""Parameters of which the default suite takes some, and the slow tests the others."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def some(values: Iterable[Any], default: Collection[Any]) -> list[Any]:
    """The values as parameters of a test; those that are not among `default` are marked slow."""
    return [pytest.param(value, marks=[pytest.mark.slow] * (value not in default)) for value in values]
