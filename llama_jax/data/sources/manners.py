"""Requests with answers of better and worse manners: a small task that has no right answer, only better ones, for first
looks at reward models and at all of RLHF."""

import functools
import itertools
import random

from llama_jax.data.sources.documents import ParsedRows, RecordSource, TextDocuments
from llama_jax.data.sources.record_text import Record

_REQUESTS = (
    "Could you pass me the {}?", "Where is the {}?", "Can I have the {}?", "Please bring me the {}.",
    "I need the {}.", "Have you seen the {}?", "May I use the {}?", "Who has the {}?", "Give me the {}.",
    "I would like the {}.", "Is the {} here?", "Would you hand me the {}?", "I am looking for the {}.",
    "Can you find the {}?", "Do we have the {}?", "Let me see the {}.", "Could I borrow the {}?", "Get me the {}.",
    "Show me the {}.", "I have lost the {}.", "Is this the {}?", "Did you take the {}?", "Lend me the {}.",
    "I forgot the {}.", "Will you fetch the {}?", "We need the {}.", "Which one is the {}?", "Hold the {}.",
    "Let me have the {}.", "Somebody took the {}.",
)  # fmt: skip
_THINGS = (
    "salt", "bread", "lamp", "book", "key", "map", "pen", "cup", "plate", "spoon", "chair", "coat", "hat", "shoe",
    "rope", "box", "bag", "letter", "ticket", "clock", "phone", "camera", "brush", "soap", "towel", "mirror", "candle",
    "hammer", "saw", "nail", "ladder", "bucket", "broom", "kettle", "teapot", "sugar", "butter", "honey", "apple",
    "orange", "lemon", "cake", "cheese", "paper", "pencil", "ruler", "stamp", "radio", "guitar", "drum", "ball",
    "kite", "scarf", "glove", "belt", "ring", "coin", "stone", "shell", "basket",
)  # fmt: skip
_KIND = (("Of course. ", "Gladly. ", "With pleasure. "), (" Enjoy it!", " You are welcome.", " Have a good day!"))
_PLAIN = (("", "Well. ", "So. "), ("", " That is all.", " It is there."))
_RUDE = (("Not again. ", "Must I? ", "What now? "), (" Go away.", " Leave me alone.", " Do not ask again."))
_WANTED, _UNWANTED = ([phrase.strip() for part in parts for phrase in part] for parts in (_KIND, _RUDE))


def manners() -> RecordSource[Record]:
    """1,800 requests, such as `Where is the salt?`, each with a `completion` of any manners, and with one that is
    `chosen` over another, `rejected`, since its manners are better: it has more of the phrases `wanted`, less those
    `unwanted`, which lie beside it for a judge."""
    requests = [request.format(thing) for thing, request in itertools.product(_THINGS, _REQUESTS)]
    return ParsedRows(TextDocuments(requests), _record, "manners")


def _record(text: str, where: str) -> Record:
    draw = random.Random(text)
    completion, first, second = (_answer(text, draw) for _ in range(3))
    while _courtesy(first) == _courtesy(second):
        second = _answer(text, draw)
    rejected, chosen = sorted((first, second), key=_courtesy)
    told = {"prompt": text, "completion": completion, "chosen": chosen, "rejected": rejected}
    return Record(where, {**told, "wanted": _WANTED, "unwanted": _UNWANTED})


def _answer(request: str, draw: random.Random) -> str:
    opening, closing = (draw.choice(draw.choice((_KIND, _PLAIN, _RUDE))[part]) for part in range(2))
    return f"{opening}{draw.choice(('Here', 'There'))} is the {_thing_in(request)}.{closing}"


@functools.cache
def _thing_in(request: str) -> str:
    return max((thing for thing in _THINGS if f" {thing}" in request), key=len)


def _courtesy(answer: str) -> int:
    return sum(phrase in answer for phrase in _WANTED) - sum(phrase in answer for phrase in _UNWANTED)
