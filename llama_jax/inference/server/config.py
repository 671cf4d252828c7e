"""Settings of the command `serve`."""

import ipaddress
from dataclasses import dataclass
from typing import Literal

from llama_jax.checkpoints.config import UseConfig
from llama_jax.core.errors import UserError


@dataclass(frozen=True)
class ServeConfig(UseConfig):
    """Serve a model over HTTP as OpenAI's API, with a page to chat with it in a browser. Only this machine can connect,
    unless another --host is given, which needs an API key (the environment variable LLAMA_JAX_API_KEY, or a file)."""

    host: str = "127.0.0.1"
    """Address to listen at; any but this machine's own needs an API key."""
    port: int = 8000
    """Port to listen at; 0: any that is free."""
    name: str | None = None
    """What clients call the model; None: the last part of its path."""
    api_key_file: str | None = None
    """File whose first line is the API key; None: the environment variable LLAMA_JAX_API_KEY, if it is set."""
    cors_origins: tuple[str, ...] = ()
    """Origins whose pages in a browser may call the server, such as '[https://example.org]'."""
    weights_dtype: Literal["int8"] | None = None
    """Type in which weights are kept; None: that of computation (--model_dtype)."""
    cache_dtype: Literal["int8"] | None = None
    """Type in which keys and values are kept; None: that of computation."""
    slots: int = 8
    """Answers that are written at the same time."""
    length: int | None = None
    """Tokens that a prompt and its answer may have together; None: the model's context. Each slot has memory for it."""
    max_queue: int = 64
    """Answers that may wait for a slot; what comes beyond is refused (429)."""
    max_prompt_tokens: int | None = None
    """Tokens of a prompt at the most; None: what fits."""
    max_new_tokens: int | None = None
    """Tokens of an answer at the most; None: what fits."""
    max_answers: int = 16
    """Answers (`n`) to a request at the most, over all its prompts."""
    max_body_bytes: int = 4 * 2**20
    """Bytes of a request at the most."""
    request_timeout_seconds: float = 600.0
    """After this time a request ends with an error."""
    shutdown_timeout_seconds: float = 30.0
    """After SIGTERM or Ctrl-C, how long answers that have begun may go on."""

    def __post_init__(self) -> None:
        for name in ("slots", "max_queue", "max_answers", "max_body_bytes"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}: {getattr(self, name)} must be at least 1")
        for name in ("length", "max_prompt_tokens", "max_new_tokens"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UserError(f"{name}: {getattr(self, name)} must be at least 1, or null")
        for name in ("request_timeout_seconds", "shutdown_timeout_seconds"):
            if not 0 < getattr(self, name) < 1e6:
                raise UserError(f"{name}: {getattr(self, name)} must be greater than 0")
        if not 0 <= self.port < 65536:
            raise UserError(f"port: {self.port} must be from 0 to 65535")
        for origin in self.cors_origins:
            scheme, _, host = origin.partition("://")
            if scheme not in ("http", "https") or not host or "/" in host or "*" in host:
                raise UserError(f"cors_origins: '{origin}' must be an origin such as https://example.org")

    @property
    def is_local(self) -> bool:
        """Whether only this machine can connect."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"
