"""Instruction data that a model writes: `python -m llama_jax.self_instruct`."""

if __name__ == "__main__":
    from llama_jax.__main__ import main

    main("self_instruct")

import json

from llama_jax.instruct.config import ConversationsConfig, JudgeConfig, SelfInstructConfig
from llama_jax.instruct.conversations import write_conversations
from llama_jax.instruct.judging import score_answers
from llama_jax.instruct.loop import write_tasks


def self_instruct(config: SelfInstructConfig | ConversationsConfig | JudgeConfig) -> None:
    """Write tasks, conversations or scores into the run directory, and say how many."""
    if isinstance(config, ConversationsConfig):
        result = write_conversations(config)
    elif isinstance(config, JudgeConfig):
        result = score_answers(config)
    else:
        result = write_tasks(config)
    if config.json:
        print(json.dumps(result))
