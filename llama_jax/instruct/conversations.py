"""Conversations that a model has with itself: it plays a person and an assistant in turn, and each answer of the
assistant's makes an example of what was said before it (ChatLLaMA's generate_actor_dataset)."""

from collections.abc import Generator as Steps
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from llama_jax.core.errors import UserError
from llama_jax.core.processes.signals import StopSignal
from llama_jax.core.run_directory import open_run
from llama_jax.instruct.asking import bound, numbered_seed, played
from llama_jax.instruct.config import ConversationsConfig
from llama_jax.instruct.generators.opening import FREE, check_local, opened_generator
from llama_jax.instruct.generators.requests import Answer, Request
from llama_jax.instruct.ledger import RoundFiles
from llama_jax.instruct.tasks import read_seeds

_Message = dict[str, str]
_TOKENS = 256
_PLAY: dict[Literal["english", "chinese"], tuple[str, str, str, str, str]] = {
    "english": (
        "A person and a helpful assistant talk about this: {topic}\n\nWhat was said so far:\n{said}\n\nYou are the "
        "person. Write what you say next, in one or two sentences: ask on, object, or change to a matter near it. "
        "Write the words alone, without a name before them.",
        "The following is a conversation of a person with a helpful assistant about this: {topic}\n\n{said}",
        "Person",
        "Assistant",
        "(nothing yet)",
    ),
    "chinese": (
        "一个人正在和一位乐于助人的助手谈论：{topic}\n\n目前的对话：\n{said}\n\n你就是这个人。"
        "用一两句话写出你接下来要说的话：可以追问、提出不同意见，或者转到相近的话题。只写说的话，前面不要写名字。",
        "下面是一个人和一位乐于助人的助手的对话，话题是：{topic}\n\n{said}",
        "用户",
        "助手",
        "（还没有开始）",
    ),
}


def write_conversations(config: ConversationsConfig) -> dict[str, Any]:
    """Write conversations.jsonl, whole conversations, and examples.jsonl, an example for each answer; `sft` reads both.

    Returns:
        What the command prints as JSON.

    Raises:
        UserError: the topics, the model or the endpoint cannot be used.
        SavedAfterSignal: the run was asked to end.
        CannotGoOnError: the endpoint is out of reach, or the budget is spent.
    """
    check_local(config.run_dir)
    topics = _topics(config)
    with (
        open_run(config.run_dir, config, command="self_instruct conversations", free=FREE) as run,
        StopSignal() as stop,
    ):
        with opened_generator(config, run, lambda: stop.received) as opened:
            files = RoundFiles(run, "conversations", "examples")
            try:
                while (done := sum(record["conversations"] for record in files.rounds)) < config.conversations:
                    # As many at once as are answered at once; a number of its own for each conversation.
                    numbers = range(done, min(done + max(8, config.batch_size), config.conversations))
                    made, taken = played(_together(config, topics, numbers, opened.chats), opened.answers)
                    for number, messages in zip(numbers, made, strict=True):
                        if messages:
                            topic = topics[number % len(topics)]
                            files.write("conversations", {"topic": topic, "messages": messages})
                        for example in sub_conversations(messages):
                            files.write("examples", example)
                    files.end_round(taken | {"conversations": len(numbers)})
                    run.say(f"{numbers.stop} of {config.conversations} conversations")
            finally:
                files.close()
            counts = {name: len(files.read(name)) for name in files.paths}
        run.say(f"{files.paths['examples']}: {counts['examples']} examples of {counts['conversations']} conversations")
        return counts | opened.totals


def sub_conversations(messages: Sequence[_Message]) -> list[dict[str, Any]]:
    """An example for each answer: what was said before, and it."""
    return [
        {"prompt": list(messages[:place]), "completion": [message]}
        for place, message in enumerate(messages)
        if message["role"] == "assistant"
    ]


def _together(
    config: ConversationsConfig, topics: Sequence[str], numbers: range, chats: bool
) -> Steps[list[Request], list[Answer], list[list[_Message]]]:
    """Several conversations, turn by turn. One that somebody leaves without a word ends with the answer before."""
    talks: list[list[_Message]] = [[] for _ in numbers]
    live = list(range(len(numbers)))
    for turn in range(config.turns - config.turns % 2):
        role = "assistant" if turn % 2 else "user"
        requests = [
            _request(config, topics[numbers[place] % len(topics)], talks[place], role, chats, numbers[place])
            for place in live
        ]
        answers = yield requests
        said = [answer.text.strip() if answer.is_usable else "" for answer in answers]
        for place, text in zip(live, said, strict=True):
            talks[place] += [{"role": role, "content": text}] if text else []
        live = [place for place, text in zip(live, said, strict=True) if text]
        if not live:
            break
    return [talk[:-1] if talk and talk[-1]["role"] == "user" else talk for talk in talks]


def _request(
    config: ConversationsConfig, topic: str, talk: Sequence[_Message], role: str, chats: bool, number: int
) -> Request:
    ask, transcript, person, assistant, nothing = _PLAY[config.prompt_language]
    names = {"user": person, "assistant": assistant}
    said = [f"{names[message['role']]}: {message['content']}" for message in talk]
    prompt: str | tuple[_Message, ...]
    if not chats:
        prompt = transcript.format(topic=topic, said="\n".join([*said, f"{names[role]}:"]))
    elif role == "assistant":
        prompt = tuple(talk)
    else:
        prompt = ({"role": "user", "content": ask.format(topic=topic, said="\n".join(said) or nothing)},)
    return Request(
        prompt,
        bound(config, _TOKENS),
        0.7 if config.temperature is None else config.temperature,
        1.0 if config.top_p is None else config.top_p,
        stop=() if chats else (f"\n{person}:", f"\n{assistant}:"),
        seed=numbered_seed(config.seed, number, len(talk)),
    )


def _topics(config: ConversationsConfig) -> list[str]:
    if config.topics is None:
        own: Literal["english", "chinese"] = config.prompt_language
        return [seed.instruction for seed in read_seeds(own)]
    try:
        lines = Path(config.topics).expanduser().read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"--topics {config.topics}: not UTF-8 at byte {error.start}") from None
    topics = [line.strip() for line in lines if line.strip()]
    if not topics:
        raise UserError(f"--topics {config.topics}: has no topic; write one a line")
    return topics
