"""Serve a model over HTTP: `python -m llama_jax.serve`."""

if __name__ == "__main__":
    from llama_jax.__main__ import main

    main("serve")

import sys

import jax

from llama_jax.checkpoints.opening import open_named
from llama_jax.core.errors import UserError
from llama_jax.core.mesh import make_mesh
from llama_jax.core.processes.distributed import main_process_printer, start_up
from llama_jax.inference.layout import decoding_params
from llama_jax.inference.server.config import ServeConfig


def serve(config: ServeConfig) -> None:
    """Answer requests until SIGTERM or Ctrl-C."""
    try:
        from llama_jax.inference.server import serving
    except ModuleNotFoundError as error:
        raise UserError(f"serve: {error.name} is not installed; pip install 'llama_jax[serve]'") from None
    say = main_process_printer(sys.stderr)
    api_key = serving.read_api_key(config)
    with serving.bound_socket(config) as listener:
        who = start_up(config.distributed)
        with jax.set_mesh(make_mesh(config.mesh)):
            opened = open_named(config, say, store=config.weights_dtype)
            say(f"{who}; {opened.source}")
            layers = decoding_params(opened.model, opened.params, consume=True)
            service = serving.start_service(config, opened, layers)
            serving.serve_until_stopped(service, api_key, listener, say)
