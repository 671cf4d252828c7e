"""A server of a tiny model with random weights, in this process."""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx2
import jax

from llama_jax.checkpoints.opening import OpenModel
from llama_jax.core import sharding
from llama_jax.core.config import MeshConfig
from llama_jax.core.mesh import make_mesh
from llama_jax.data.tokenizers import train_tokenizer
from llama_jax.inference.layout import decoding_params
from llama_jax.inference.server.config import ServeConfig
from llama_jax.inference.server.service import Service
from llama_jax.inference.server.serving import bound_socket, serve, start_service
from llama_jax.model.config import ComputeConfig, LlamaConfig
from llama_jax.model.llama import language_model

TEMPLATE = (
    "{% for t in tools or [] %}[tool] {{ t.function.name }}\n{% endfor %}"
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}"
    '{% for c in m.tool_calls or [] %}<call>{"name": "{{ c.function.name }}", "arguments": '
    "{{ c.function.arguments | tojson }}}</call>{% endfor %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
TEXTS = [f"Document {number} says that twice it is {2 * number}; 日本 é 🙂" for number in range(99)]
KEY = "canary-key-5417"


def client_of(url: str, **more: Any) -> httpx2.Client:
    """A client that knows the key."""
    headers = {"authorization": f"Bearer {KEY}", **more.pop("headers", {})}
    return httpx2.Client(base_url=url, headers=headers, timeout=60, **more)


@dataclass
class Server:
    """One that runs."""

    service: Service
    url: str
    stop: Callable[[], None]
    """Have it end."""

    def client(self, **more: Any) -> httpx2.Client:
        """A client that knows the key."""
        return client_of(self.url, **more)

    def await_ends(self) -> None:
        """Wait until nothing more is done for any request: it is counted and logged only after its answer is sent."""

        async def ends() -> None:
            while any("run_asgi" in str(task.get_coro()) for task in asyncio.all_tasks()):
                await asyncio.sleep(0.002)

        asyncio.run_coroutine_threadsafe(ends(), self.service.worker._loop).result(60)


def opened_model(context_length: int = 256) -> OpenModel:
    """The model, on one device."""
    tokenizer = train_tokenizer(TEXTS, 320).with_chat_template(TEMPLATE)
    sizes = {"width": 32, "mlp_width": 32, "num_layers": 1, "num_heads": 2, "num_kv_heads": 2, "head_size": 16}
    config = LlamaConfig(tokenizer.vocab_size, context_length=context_length, **sizes)
    model = language_model(config, ComputeConfig())
    whole = sharding.replicated(make_mesh(MeshConfig(), jax.devices()[:1]))
    params = jax.jit(model.init, out_shardings=whole)(jax.random.key(1))
    return OpenModel(model, params, tokenizer.files(), "models/tiny", None, tokenizer=tokenizer)


@contextlib.contextmanager
def running(opened: OpenModel, api_key: str | None = KEY, **settings: Any) -> Iterator[Server]:
    """Serve it in a thread, at a port of its own."""
    config = ServeConfig(**{"port": 0, **settings})
    with bound_socket(config) as listener:
        with jax.set_mesh(jax.tree.leaves(opened.params)[0].sharding.mesh):  # not for the tests in between
            service = start_service(config, opened, decoding_params(opened.model, opened.params))
        stop = asyncio.Event()

        async def run() -> None:
            await serve(service, api_key, listener, stop)

        def end() -> None:
            with contextlib.suppress(RuntimeError):  # it has ended
                service.worker._loop.call_soon_threadsafe(stop.set)

        thread = threading.Thread(target=lambda: asyncio.run(run()))
        thread.start()
        url = "http://{}:{}".format(*listener.getsockname())
        try:
            yield Server(service, url, end)
        finally:
            end()
            thread.join(60)
            service.worker.join(60)
            assert not thread.is_alive() and not service.worker.is_alive()
