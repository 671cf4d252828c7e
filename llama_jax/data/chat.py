"""The door to `instructions` for those who use a model: a conversation as token ids."""

from llama_jax.data.instructions.chat import encode_chat

__all__ = ["encode_chat"]
