"""A model's weights in float32 as another program opens them, for the time of a comparison."""

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from llama_jax.core.errors import UserError


@contextmanager
def exported(model: str, form: str, program: str, say: Callable[[str], None]) -> Iterator[Path]:
    """A directory of Hugging Face's or a GGUF file, removed with the block; written by a process of its own.

    Raises:
        UserError: the model could not be written.
    """
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / ("weights.gguf" if form == "gguf" else "weights")
        say(f"writing the weights in float32 for {program}")
        options = ("--source", model, "--target", target, "--format", form, "--dtype", "float32")
        done = subprocess.run(
            [sys.executable, "-m", "llama_jax.convert", *map(str, options), "--no_check"], stdout=subprocess.DEVNULL
        )
        if done.returncode:
            raise UserError(f"{model}: could not be written for {program}; see above")
        yield target
