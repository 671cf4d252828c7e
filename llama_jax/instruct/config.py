"""Settings of Self-Instruct, and of the tools beside it that ask a model in the same way."""

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from llama_jax.checkpoints.config import UseConfig
from llama_jax.core.errors import UserError

FormName: TypeAlias = Literal["original", "alpaca", "magpie"]
Prompting: TypeAlias = Literal["auto", "chat", "completion"]


@dataclass(frozen=True)
class EndpointConfig:
    """An OpenAI-compatible endpoint that answers instead of a model on this machine (extra `api`)."""

    model: str | None = None
    """Name of the model there; null: `--model` answers, on this machine."""
    url: str | None = None
    """Its address up to and with the version, such as http://localhost:8000/v1. null: the environment's
    OPENAI_BASE_URL, else OpenAI's."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; the key itself is never written anywhere. Without it a local server
    (one with `url`) is asked with no key."""
    concurrency: int = 8
    """Requests that are under way at once."""
    requests_per_minute: int | None = None
    """Requests that are sent in a minute at the most, repetitions included; null: no limit."""
    timeout_seconds: float = 120.0
    """How long to wait for an answer."""
    attempts: int = 6
    """How often a request is sent before the run ends (answers so far are kept): after 408, 409, 429, 5xx, time-outs
    and broken connections, after the time that the server asks for, else 1, 2, 4 … 60 seconds."""
    send_seed: bool = True
    """Send the seed of each request, for endpoints that know the field."""
    price_in: float = 0.0
    """US dollars for a million tokens of prompts."""
    price_out: float = 0.0
    """US dollars for a million tokens of answers."""
    budget: float | None = None
    """US dollars; the run ends before a request would begin with these spent. Holds to the price of one request, since
    what is under way counts at its most. null: no end."""

    def __post_init__(self) -> None:
        if self.url is not None and not self.url.startswith(("http://", "https://")):
            raise UserError(f"endpoint.url: {self.url} must begin with http:// or https://")
        for name in ("concurrency", "attempts"):
            if (value := getattr(self, name)) < 1:
                raise UserError(f"endpoint.{name}: {value} must be at least 1")
        for name in ("requests_per_minute", "timeout_seconds"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise UserError(f"endpoint.{name}: {value} must be positive")
        for name in ("price_in", "price_out", "budget"):
            if (value := getattr(self, name)) is not None and value < 0:
                raise UserError(f"endpoint.{name}: {value} must not be negative")
        if self.budget is not None and not self.price_in and not self.price_out:
            raise UserError("endpoint.budget: needs endpoint.price_in and endpoint.price_out, else nothing ever costs")


@dataclass(frozen=True)
class AskingConfig(UseConfig):
    """Who answers, and where the answers are kept; shared by every command that asks many requests."""

    run_dir: str = "runs/self_instruct"
    """Folder of the run. The same command again goes on where it was stopped."""
    endpoint: EndpointConfig = field(default_factory=EndpointConfig)
    """An endpoint to ask instead of `model`."""
    answers: str | None = None
    """File of kept answers: no request that is in it is asked again. null: answers.jsonl in the run directory. With
    that of another run, one with other filters asks only what is new."""
    batch_size: int = 8
    """Requests that a model on this machine answers at once."""
    prompting: Prompting = "auto"
    """`completion`: the model continues a prompt, as in the papers; `chat`: the same is said to it as a message.
    `auto`: `chat` for an endpoint and for a model with a chat template."""
    prompt_language: Literal["english", "chinese"] = "english"
    """The language in which the model is asked."""
    max_new_tokens: int | None = None
    """Tokens of an answer at the most; null: as published for each kind of request. Never more, and no more than the
    model's context has room for."""
    temperature: float | None = None
    """Of the requests that write tasks; null: as published for the form."""
    top_p: float | None = None
    """Of the requests that write tasks; null: as published for the form."""
    seed: int = 0
    """Seed of every draw."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "max_new_tokens"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"{name}: {value} must be at least 1")
        if self.temperature is not None and self.temperature < 0:
            raise UserError(f"temperature: {self.temperature} must not be negative")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"top_p: {self.top_p} must lie above 0 and be at most 1")
        if self.model is not None and self.endpoint.model is not None:
            raise UserError("endpoint.model: contradicts --model, one on this machine; give one of the two")


@dataclass(frozen=True)
class FilterConfig:
    """Which instructions are kept; the defaults are the papers'."""

    max_similarity: float = 0.7
    """An instruction is dropped whose ROUGE-L with one of the seeds or the pool is above this."""
    min_words: int = 4
    """Words of an instruction at the least; with `language` any a character of a script without spaces is one."""
    max_words: int = 150
    """Words of an instruction at the most."""
    blacklist: tuple[str, ...] | None = None
    """Words that drop an instruction; null: the paper's, of what a model of text cannot work on (images, files, …), and
    with `language` any their Chinese counterparts."""

    def __post_init__(self) -> None:
        if not 0 <= self.max_similarity <= 1:
            raise UserError(f"filters.max_similarity: {self.max_similarity} must lie between 0 and 1")
        if self.min_words < 1:
            raise UserError(f"filters.min_words: {self.min_words} must be at least 1")
        if self.max_words < self.min_words:
            raise UserError(f"filters.max_words: {self.max_words} is less than filters.min_words, {self.min_words}")


@dataclass(frozen=True)
class SelfInstructConfig(AskingConfig):
    """Write instruction data with a model, from seed tasks. Run the same command again to resume. `self_instruct
    conversations` writes conversations, `self_instruct judge` scores answers."""

    form: FormName = "alpaca"
    """`original`: Self-Instruct's (arXiv:2212.10560), in steps: instructions, whether they are classification,
    instances. `alpaca`: Stanford Alpaca's, whole tasks in one request. `magpie` (arXiv:2406.08464): an aligned model
    writes what a user would say, then answers it."""
    seed_tasks: str = "english"
    """Seed tasks: `english` (175) or `chinese` (24), written for this project, or a file of your own, in the format of
    Self-Instruct's seed_tasks.jsonl or of Alpaca's data."""
    domain: str | None = None
    """What the tasks are about, such as 'contract law', which the prompts then say; for seed tasks of that domain."""
    language: Literal["english", "any"] = "english"
    """What the filters know. `english`: the papers' to the letter; nothing else passes them. `any`: words by Unicode,
    each character of a script without spaces for one, and no filter on the first character."""
    user_opening: str | None = None
    """magpie: the text with which the model's chat template opens a user's turn. null: read off the template of a model
    on this machine; an endpoint needs it."""
    tasks: int = 1000
    """The run ends with the round in which so many tasks are kept."""
    max_requests: int | None = None
    """The run ends with the round in which so many requests are answered; null: no end."""
    patience: int = 20
    """The run ends after so many rounds in a row in which nothing was kept."""
    requests_per_round: int = 5
    """Requests for new tasks that are asked together; what they give is in the pool in the next round."""
    include_seeds: bool = False
    """Put the seed tasks before the others in tasks.jsonl."""
    filters: FilterConfig = field(default_factory=FilterConfig)
    """Which instructions are kept."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("tasks", "max_requests", "patience", "requests_per_round"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"{name}: {value} must be at least 1")
        if self.form == "magpie" and self.endpoint.model is not None and self.user_opening is None:
            raise UserError(
                "user_opening: magpie needs it with an endpoint, the text that opens a user's turn there, such as "
                "'<|im_start|>user\\n'"
            )
        if self.user_opening is not None and self.form != "magpie":
            raise UserError(f"user_opening: means nothing to --form {self.form}, only to magpie")
        if self.form == "magpie" and self.domain is not None:
            raise UserError("domain: magpie has no prompt that could say it; choose another form")


@dataclass(frozen=True)
class ConversationsConfig(AskingConfig):
    """Write conversations: a model plays both roles, and each conversation gives an example for every answer in it
    (ChatLLaMA's generate_actor_dataset)."""

    run_dir: str = "runs/conversations"
    """Folder of the run. The same command again goes on where it was stopped."""
    topics: str | None = None
    """File with a topic a line, for a conversation each; null: the instructions of the seed tasks."""
    conversations: int = 100
    """How many to write."""
    turns: int = 20
    """What is said in a conversation, by both sides together."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.conversations < 1:
            raise UserError(f"conversations: {self.conversations} must be at least 1")
        if self.turns < 2:
            raise UserError(f"turns: {self.turns} must be at least 2, a question and an answer")


@dataclass(frozen=True)
class JudgeConfig(AskingConfig):
    """Score answers from 0 to 5 with a model, for reward data (ChatLLaMA's generate_rewards)."""

    run_dir: str = "runs/judge"
    """Folder of the run. The same command again goes on where it was stopped."""
    data: str = ""
    """Answers to score: a file of records in any format that `sft` reads, of ChatLLaMA's (user_input, completion), or
    of `self_instruct conversations`."""
    criteria: str | None = None
    """What makes a good answer, in a sentence; null: helpful, correct, complete, clear and harmless."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.data:
            raise UserError("data: needed, a file of answers to score")
