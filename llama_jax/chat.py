"""Talk with a model in the terminal: `python -m llama_jax.chat`."""

if __name__ == "__main__":
    from llama_jax.__main__ import main

    main("chat")

import json
import sys

import jax

from llama_jax.checkpoints.opening import open_named
from llama_jax.core.mesh import make_mesh
from llama_jax.core.processes.distributed import main_process_printer, start_up
from llama_jax.inference.chat_command import talk
from llama_jax.inference.config import ChatConfig
from llama_jax.inference.conversation import Conversation


def chat(config: ChatConfig) -> None:
    """Answer until the input ends; then print the conversation as JSON, if that is asked for."""
    say = main_process_printer(sys.stderr)
    who = start_up(config.distributed)
    with jax.set_mesh(make_mesh(config.mesh)):
        opened = open_named(config, say)
        say(f"{who}; {opened.source}")
        conversation = Conversation(config, opened, say)
        talk(conversation, markdown=config.markdown)
    if config.json:
        print(json.dumps({"messages": conversation.messages, "model": opened.source}))
