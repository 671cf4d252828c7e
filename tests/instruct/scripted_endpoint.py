"""An OpenAI-compatible endpoint that answers well, or fails as it is told, in threads of this process."""

import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

VERBS = [
    "Describe",
    "Explain",
    "Rewrite",
    "Summarize",
    "Translate",
    "Outline",
    "Compare",
    "Suggest",
    "Compose",
    "Invent",
    "Plan",
    "Review",
]
ADJECTIVES = [
    "ancient",
    "brittle",
    "cheerful",
    "distant",
    "elegant",
    "fragile",
    "golden",
    "hidden",
    "icy",
    "jealous",
    "knotted",
    "lonely",
    "modest",
]
NOUNS = [
    "lighthouse",
    "orchard",
    "violin",
    "glacier",
    "bakery",
    "treaty",
    "comet",
    "harbour",
    "recipe",
    "lantern",
    "poem",
    "bridge",
    "garden",
    "clock",
]
WHO = [
    "sailor",
    "nurse",
    "gardener",
    "pilot",
    "child",
    "baker",
    "judge",
    "tourist",
    "painter",
    "farmer",
    "dentist",
    "poet",
    "monk",
    "welder",
]
WHEN = [
    "breakfast",
    "dawn",
    "winter",
    "holidays",
    "exams",
    "harvest",
    "storms",
    "lunch",
    "midnight",
    "autumn",
    "Sunday",
    "rehearsals",
]


def instruction(draw: random.Random) -> str:
    """One of about four hundred thousand."""
    verb, adjective, noun, who, when = map(draw.choice, (VERBS, ADJECTIVES, NOUNS, WHO, WHEN))
    return f"{verb} the {adjective} {noun} for one {draw.choice(ADJECTIVES)} {who} before {when}."


def good_answer(body: dict[str, Any]) -> str:
    """What a capable model would answer to a request of any of the forms; the same to the same request."""
    draw = random.Random(json.dumps(body, sort_keys=True))
    asked = body["prompt"] if "prompt" in body else body["messages"][-1]["content"]
    if "List of 20 tasks:" in asked:
        blocks = []
        for number in range(4, 21):
            given = draw.choice(["<noinput>", f"It is about {draw.choice(NOUNS)}s."])
            head = "" if number == 4 else f"{number}. Instruction: "
            output = f"Here are {draw.randint(3, 99)} ideas."
            blocks.append(f"{head}{instruction(draw)}\n{number}. Input:\n{given}\n{number}. Output:\n{output}")
        return " " + "\n###\n".join(blocks)
    if "Here is a series of tasks" in asked:
        return " " + "\n".join(f"{n}. {instruction(draw)}".removeprefix("9. ") for n in range(9, 17))
    if "Is it classification?" in asked:
        return draw.choice([" Yes", " No", " No"])
    if "the label first" in asked:
        return "\nClass label: good\nSentence: It works.\nClass label: bad\nSentence: It broke."
    if "Write examples for the tasks." in asked:
        return f"\nExample 1\nInput:\nthe {draw.choice(NOUNS)}\nOutput:\nIt is {draw.randint(2, 99)} years old."
    if "Write the number alone" in asked:
        return f"Score: {draw.randint(0, 5)}"
    if body.get("prompt") == "<user>":
        return instruction(draw)
    return f"My answer has {draw.randint(3, 999)} parts."


@dataclass
class Scripted:
    """The endpoint as a test sees it."""

    url: str
    bodies: list[dict[str, Any]] = field(default_factory=list)
    """What was asked, in order, with what came of it under `fault`."""
    answered: int = 0
    most_at_once: int = 0
    at_once: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


@contextmanager
def scripted_endpoint(
    answer: Callable[[dict[str, Any]], str] = good_answer,
    fault: Callable[[int], str | None] = lambda number: None,
    seconds: float = 0.0,
) -> Iterator[Scripted]:
    """An endpoint for a `with` block.

    Args:
        answer: Gives the text for the body of a request.
        fault: For the number of a request, what goes wrong with it: a status such as `429` or `500`, `quota`, `slow`,
            `cut`, `empty`, `length`, `filtered` or `context`.
        seconds: That each answer takes.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with scripted.lock:
                problem = fault(len(scripted.bodies))
                scripted.bodies.append(body | {"fault": problem})
                scripted.at_once += 1
                scripted.most_at_once = max(scripted.most_at_once, scripted.at_once)
            time.sleep(seconds)
            try:
                self._respond(body, problem)
            finally:
                with scripted.lock:
                    scripted.at_once -= 1

        def _respond(self, body: dict[str, Any], problem: str | None) -> None:
            if problem == "slow":
                time.sleep(5)  # longer than its client waits
            if problem in ("400", "401", "408", "429", "500", "503"):
                return self._send(int(problem), {"error": {"message": "no", "code": None}}, {"Retry-After": "0.01"})
            if problem == "quota":
                return self._send(429, {"error": {"message": "spent", "code": "insufficient_quota"}})
            if problem == "context":
                message = "This model's maximum context length is 10 tokens. Please reduce your prompt."
                return self._send(400, {"error": {"message": message, "code": "context_length_exceeded"}})
            text = answer(body)
            finish = {"length": "length", "filtered": "content_filter"}.get(problem or "", "stop")
            choice = {"index": 0, "finish_reason": finish, "text": text}
            if "messages" in body:
                choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}
            usage = {"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 150}
            value = {"id": "1", "object": "x", "created": 0, "model": "m", "usage": usage, "choices": [choice]}
            if problem == "empty":
                value["choices"] = []
            with scripted.lock:
                scripted.answered += problem not in ("empty", "cut", "slow")
            self._send(200, value, cut=problem == "cut")

        def _send(self, status: int, value: Any, headers: dict[str, str] | None = None, cut: bool = False) -> None:
            content = json.dumps(value).encode()
            self.send_response(status)
            for name, each in {"Content-Type": "application/json", **(headers or {})}.items():
                self.send_header(name, each)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            try:
                self.wfile.write(content[: len(content) // 2] if cut else content)
            except OSError:
                return  # the client left
            if cut:
                self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    scripted = Scripted(f"http://127.0.0.1:{server.server_address[1]}/v1")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield scripted
    finally:
        server.shutdown()
        server.server_close()
