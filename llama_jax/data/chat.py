"""The door to `instructions` for those who use a model: a conversation as token ids, or as text."""

from llama_jax.data.instructions.chat import ChatTemplate, encode_chat

__all__ = ["ChatTemplate", "encode_chat"]
