"""A config class made of two, for commands that take every setting of another command beside their own."""

from dataclasses import make_dataclass
from typing import Any


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
