"""`/v1/responses`."""

from llama_jax.inference.server.errors import ApiError
from llama_jax.inference.server.replies import Events, Reply
from llama_jax.inference.server.service import Call


async def respond(call: Call) -> Reply | Events:
    """Answer a request to `/v1/responses`."""
    raise ApiError("responses are not served yet; use /v1/chat/completions", status=501)
