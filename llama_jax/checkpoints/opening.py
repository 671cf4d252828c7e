"""Opening a model to use it: whatever `--model` names becomes a model, its parameters on the mesh, and a tokenizer."""

import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh

from llama_jax.checkpoints.formats import find_format, open_weights
from llama_jax.checkpoints.orbax_weights import stored_config
from llama_jax.checkpoints.store import find_verified
from llama_jax.checkpoints.weights import Weights, padded, weight_names
from llama_jax.core import sharding, tree
from llama_jax.core.arrays import PyTree
from llama_jax.core.config import MeshConfig
from llama_jax.core.errors import UserError
from llama_jax.core.run import newest_run
from llama_jax.data.tokenizers import Tokenizer, has_tokenizer, load_tokenizer, tokenizer_from_files
from llama_jax.model.config import ComputeConfig
from llama_jax.model.llama import LanguageModel, language_model


@dataclass(frozen=True)
class OpenParams:
    """A model without its tokenizer."""

    model: LanguageModel
    params: PyTree
    """Scanned layout, in the compute type, on the mesh."""
    files: Mapping[str, bytes]
    """What travels with the weights: see `Weights.files`."""
    source: str
    """Where it came from, for people."""
    run: epath.Path | None
    """The run it was trained in, if any."""


@dataclass(frozen=True)
class OpenModel(OpenParams):
    """A model ready for use."""

    tokenizer: Tokenizer


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


def load(
    path: str,
    *,
    dtype: Literal["float32", "bfloat16"] = "float32",
    step: int | None = None,
    tokenizer: str | None = None,
    mesh: Mesh | None = None,
) -> tuple[LanguageModel, PyTree, Tokenizer]:
    """A model, its parameters and its tokenizer, for use from Python.

    Args:
        path: a run directory, a directory of Hugging Face or Meta, a GGUF or llama2c file, or a name on the hub.
        dtype: type of weights and activations.
        step: checkpoint of a run; None: the newest that verifies.
        tokenizer: file to take instead of the model's own.
        mesh: where the parameters go; None: all devices, sharded over `fsdp`.

    Raises:
        UserError: the path names nothing that can be opened, or no tokenizer is known.
    """
    mesh = sharding.make_mesh(MeshConfig()) if mesh is None else mesh
    with jax.set_mesh(mesh):
        opened = open_model(path, ComputeConfig(dtype=dtype), mesh, step=step, tokenizer=tokenizer, say=print)
    return opened.model, opened.params, opened.tokenizer


def open_model(
    path: str,
    compute: ComputeConfig,
    mesh: Mesh,
    *,
    step: int | None,
    tokenizer: str | None,
    say: Callable[[str], None],
) -> OpenModel:
    """Open a model in any format; called under `jax.set_mesh(mesh)`, by all processes alike.

    Args:
        step: checkpoint of the run; None: the newest that verifies.
        tokenizer: file to take instead of the model's own.
        say: told of checkpoints that do not verify.

    Raises:
        UserError: the path names nothing that can be opened, or no tokenizer is known.
    """
    opened = open_params(path, compute, mesh, step=step, say=say)
    if tokenizer is not None:
        loaded = load_tokenizer(tokenizer)
    elif has_tokenizer(opened.files):
        loaded = tokenizer_from_files(opened.files, path)
    else:
        raise UserError(f"--tokenizer: needed, {path} does not carry its own")
    if loaded.vocab_size > opened.model.config.vocab_size:
        raise UserError(f"--tokenizer: has {loaded.vocab_size} tokens, the model {opened.model.config.vocab_size}")
    return OpenModel(**vars(opened), tokenizer=loaded)


def open_params(
    path: str, compute: ComputeConfig, mesh: Mesh, *, step: int | None, say: Callable[[str], None]
) -> OpenParams:
    """The same without a tokenizer."""
    place, kind = find_format(path)
    if kind == "orbax":
        return _from_run(epath.Path(place), compute, mesh, step, say)
    weights = open_weights(place, step=step, say=say)
    model = language_model(weights.config, compute)
    return OpenParams(model, _from_weights(weights, model, mesh), weights.files, path, None)


def _from_run(
    run: epath.Path, compute: ComputeConfig, mesh: Mesh, step: int | None, say: Callable[[str], None]
) -> OpenParams:
    """A run, or a model that `convert` wrote in its form; each process reads what its devices hold."""
    verified = find_verified(run / "checkpoints", ("params", "model"), step=step, say=say)
    if verified is None:
        raise UserError(f"--model {run}: holds no checkpoint")
    model = language_model(stored_config(f"{run} step {verified.step}", verified.files), compute)
    files = {name.removeprefix("model/"): content for name, content in verified.files.items()}
    stored = verified.manifest.leaves["params"]
    shapes = {
        path: jax.ShapeDtypeStruct(leaf.shape, stored[path].dtype if path in stored else leaf.dtype)
        for path, leaf in tree.flatten(model.shapes()).items()
    }
    targets = tree.unflatten(shapes)
    targets = sharding.with_shardings(targets, sharding.shardings_of(mesh, targets, model.axes))
    params = verified.restore({"params": targets})["params"]
    params = jax.jit(lambda params: tree.cast(params, jnp.dtype(compute.dtype)))(params)
    trained = run if (run / "config.yaml").exists() else None
    return OpenParams(model, params, files, f"{run} step {verified.step}", trained)


def _from_weights(weights: Weights, model: LanguageModel, mesh: Mesh) -> PyTree:
    """The parameters on the mesh, read and placed one after another."""
    config, dtype = model.config, jnp.dtype(model.compute.dtype)
    shardings = tree.flatten(sharding.shardings_of(mesh, model.shapes(), model.axes))
    params = {}
    for name in weight_names(config):
        layers = range(config.num_layers) if name.per_layer else (None,)
        tensors = [weights.read(name, layer).astype(dtype) for layer in layers]
        leaf = np.stack(tensors) if name.per_layer else padded(tensors[0], name, config)
        params[name.ours] = sharding.placed(leaf, shardings[name.ours])
    return tree.unflatten(params)
