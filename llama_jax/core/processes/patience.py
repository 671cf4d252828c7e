"""How long nothing has changed. Time in which this process was itself stopped does not count."""

import time

_MOST_SECONDS = 5.0
"""Between two looks of one that is not stopped, however busy the machine."""


class Unchanged:
    """Looks at a value again and again, more often than every few seconds."""

    def __init__(self) -> None:
        self._value: object = object()
        self._looked = time.monotonic()
        self.seconds = 0.0
        """That the value has been what it is, as far as was seen."""

    def look(self, value: object) -> float:
        """Gives `seconds`."""
        now = time.monotonic()
        self.seconds = self.seconds + min(now - self._looked, _MOST_SECONDS) if value == self._value else 0.0
        self._value, self._looked = value, now
        return self.seconds
