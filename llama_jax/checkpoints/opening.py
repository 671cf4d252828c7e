"""Opening a model to use it: whatever `--model` names becomes a model, its parameters on the mesh, and a tokenizer."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from etils import epath
from jax.sharding import Mesh

from llama_jax.checkpoints.llama2c import read_llama2c
from llama_jax.checkpoints.store import find_verified
from llama_jax.core import sharding, tree
from llama_jax.core.arrays import PyTree
from llama_jax.core.errors import UserError
from llama_jax.core.run import newest_run
from llama_jax.data.tokenizers import Tokenizer, load_tokenizer
from llama_jax.model.config import ComputeConfig, LlamaConfig
from llama_jax.model.llama import LanguageModel, language_model


@dataclass(frozen=True)
class OpenModel:
    """A model ready for use."""

    model: LanguageModel
    params: PyTree
    """Scanned layout, in the compute type, on the mesh."""
    tokenizer: Tokenizer
    source: str
    """Where it came from, for people."""
    run: epath.Path | None
    """The run it was trained in, if any."""


def find_model(path: str | None, say: Callable[[str], None]) -> str:
    """The path given; else the newest run under runs/; else a run of the smallest configuration, trained now.

    Raises:
        UserError: the run that was to be trained did not finish.
    """
    if path is not None:
        return path
    if (newest := newest_run()) is not None:
        say(f"no --model given: taking the newest run, {newest}")
        return str(newest)
    default = "runs/tiny"
    say(f"no --model given and no run under runs/: training the smallest one first, into {default}")
    command = ["-m", "llama_jax.pretrain", "--config", "tiny/pretrain", "--run_dir", default]
    if subprocess.run([sys.executable, *command]).returncode:
        raise UserError("--model: none given, and the default could not be trained; see above")
    return default


def open_model(
    path: str,
    compute: ComputeConfig,
    mesh: Mesh,
    *,
    step: int | None,
    tokenizer: str | None,
    say: Callable[[str], None],
) -> OpenModel:
    """Open a run directory or a llama2.c model file; called under `jax.set_mesh(mesh)`, by all processes alike.

    Args:
        step: checkpoint of the run; None: the newest that verifies.
        tokenizer: file to take instead of the model's own.
        say: told of checkpoints that do not verify.

    Raises:
        UserError: the path names nothing that can be opened, or no tokenizer is known.
    """
    if epath.Path(path).is_dir():
        opened = _open_run(epath.Path(path), compute, mesh, step, tokenizer, say)
    elif not epath.Path(path).exists():
        raise UserError(f"--model {path}: no such file or directory")
    elif path.endswith(".bin"):
        if step is not None:
            raise UserError(f"--step {step}: {path} is a single model, not a run with checkpoints")
        if tokenizer is None:
            raise UserError(f"--tokenizer: needed, {path} does not carry its own")
        config, arrays = read_llama2c(path)
        model = language_model(config, compute)
        shardings = sharding.shardings_of(mesh, model.shapes(), model.axes)
        params = jax.tree.map(
            lambda array, place: jax.make_array_from_callback(array.shape, place, lambda index: array[index]),
            arrays,
            shardings,
        )
        opened = OpenModel(model, _cast(params, compute), load_tokenizer(tokenizer), path, None)
    else:
        raise UserError(f"--model {path}: neither a run directory nor a llama2.c model (.bin)")
    if opened.tokenizer.vocab_size > opened.model.config.vocab_size:
        raise UserError(
            f"--tokenizer: has {opened.tokenizer.vocab_size} tokens, the model {opened.model.config.vocab_size}"
        )
    return opened


def _open_run(
    run: epath.Path,
    compute: ComputeConfig,
    mesh: Mesh,
    step: int | None,
    tokenizer: str | None,
    say: Callable[[str], None],
) -> OpenModel:
    verified = find_verified(run / "checkpoints", ("params", "model"), step=step, say=say)
    if verified is None:
        raise UserError(f"--model {run}: holds no checkpoint")
    config = LlamaConfig.from_json(json.loads(verified.files["model/config.json"]))
    model = language_model(config, compute)
    shapes = model.shapes()
    targets = sharding.with_shardings(shapes, sharding.shardings_of(mesh, shapes, model.axes))
    params = _cast(verified.restore({"params": targets})["params"], compute)
    if tokenizer is not None:
        loaded = load_tokenizer(tokenizer)
    else:
        name = next(name for name in verified.files if name.startswith("model/tokenizer."))
        loaded = load_tokenizer(name, verified.files[name])
    return OpenModel(model, params, loaded, f"{run} step {verified.step}", run)


def _cast(params: PyTree, compute: ComputeConfig) -> PyTree:
    return jax.jit(lambda params: tree.cast(params, jnp.dtype(compute.dtype)))(params)
