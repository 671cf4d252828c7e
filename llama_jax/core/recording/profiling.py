"""`jax.profiler` traces of a few steps, on request."""

import jax
from etils import epath

from llama_jax.core.config import TrackingConfig


class Profiler:
    """Traces `profile_steps` steps from `profile_start` on; open the folder with TensorBoard or Perfetto."""

    def __init__(self, directory: epath.PathLike, config: TrackingConfig) -> None:
        self._directory = epath.Path(directory)
        self._config = config
        self._tracing = False

    def step(self, step: int) -> None:
        """Start or stop the trace; called before each step."""
        start = self._config.profile_start
        if start is None:
            return
        if step == start:
            jax.profiler.start_trace(str(self._directory))
            self._tracing = True
        elif step >= start + self._config.profile_steps:
            self.close()

    def close(self) -> None:
        """Write the trace, if one is under way."""
        if self._tracing:
            jax.profiler.stop_trace()
            self._tracing = False
