"""Settings of `evaluate`, and which task each of them is for."""

from dataclasses import dataclass
from typing import Literal

from llama_jax.checkpoints.config import UseConfig
from llama_jax.core.errors import UserError, nearest

_OWN_TASKS = ("perplexity", "multiple_choice", "last_word", "exact_match", "instructions", "preference")
EVALUATION_TASKS = (*_OWN_TASKS, "lm_eval")
_ONLY_FOR = {
    "data": _OWN_TASKS,
    "bad_records": _OWN_TASKS,
    "max_bad_fraction": _OWN_TASKS,
    "text_field": ("perplexity", "last_word"),
    "stride": ("perplexity",),
    "num_fewshot": ("multiple_choice", "last_word", "exact_match", "lm_eval"),
    "fewshot_data": ("multiple_choice", "last_word", "exact_match"),
    "max_new_tokens": ("exact_match", "instructions"),
    "prompt_format": ("instructions",),
    "judge": ("instructions",),
    "include_path": ("lm_eval",),
}
"""Settings of an evaluation that mean nothing to other tasks."""


@dataclass(frozen=True)
class EvaluateConfig(UseConfig):
    """Measure a model."""

    task: str = "perplexity"
    """What to measure. `perplexity` of text; `multiple_choice` (ARC, HellaSwag, MMLU and the like); `last_word`
    (LAMBADA); `exact_match` (GSM8K); `instructions`: answers compared with references; `preference`: which of two
    answers a reward model scores higher, or a language model finds more likely; `lm_eval:NAME[,NAME]`: tasks of
    lm-evaluation-harness (extra `eval`)."""
    data: str | None = None
    """What to measure on. Perplexity: `pydoc`, a file, a directory or a glob of .txt, .md or .jsonl files; None: the
    documents the run held out. Preference: what `data.source` of reward takes; None: the pairs the run held out. Other
    tasks: a .jsonl file, a .json file with one array, or `tfds:NAME:SPLIT`."""
    text_field: str = "text"
    """Field of a record that holds the text (perplexity, last_word)."""
    bad_records: Literal["skip", "fail"] = "skip"
    """What happens at a record that cannot be used: not UTF-8, not JSON, without a field that the task needs and the
    like. `skip` counts it by reason (`dropped_records` in the result) and names the first few; `fail` ends the work."""
    max_bad_fraction: float = 0.001
    """Share of the records that may be skipped; more end the work. Of documents that a run held out any number may."""
    limit: int | None = None
    """Documents to measure on at the most, the first ones that can be used; None: all."""
    sequence_length: int | None = None
    """Tokens in a row at the most; None: the model's context, and for perplexity as the run was trained."""
    stride: int | None = None
    """Perplexity by a sliding window: each window of `sequence_length` tokens moves on by so many, and only those are
    scored, so that all but the first have much context. None: rows of packed documents, much faster."""
    num_fewshot: int = 0
    """Solved examples before each document (multiple_choice, last_word, exact_match, lm_eval): the first ones of the
    data, which then are not measured on."""
    fewshot_data: str | None = None
    """Records to take the examples from instead, drawn with `seed`; the same examples for all documents."""
    max_new_tokens: int = 256
    """Tokens of an answer at the most (exact_match, instructions). Answers are greedy."""
    prompt_format: Literal["auto", "alpaca", "chat"] = "auto"
    """How instructions are put: Stanford Alpaca's template, or the model's chat template; `auto`: the latter if it has
    one."""
    judge: str | None = None
    """`package.module:function` that grades the answers to instructions; called with instruction, input, reference and
    answer, it gives a number."""
    include_path: str | None = None
    """Directory of task files (YAML) for lm_eval."""
    output: str | None = None
    """File NAME.json for the result, beside it NAME.samples.jsonl with each document and answer. The same command again
    resumes where it was stopped."""
    seed: int = 0
    """Seed of the choice of examples."""
    batch_size: int = 16
    """Rows at a time, rounded up to what the mesh divides."""

    def __post_init__(self) -> None:
        if len(self.adapters) > 1:
            raise UserError(f"--adapters {list(self.adapters)}: one at a time is measured")
        family = self.task.partition(":")[0]
        if family not in EVALUATION_TASKS or (family == "lm_eval") == (self.task == family):
            known = ", ".join(name if name != "lm_eval" else "lm_eval:NAME" for name in EVALUATION_TASKS)
            raise UserError(f"--task {self.task}: unknown; there are {known}{nearest(family, EVALUATION_TASKS)}")
        for name, tasks in _ONLY_FOR.items():
            if family not in tasks and getattr(self, name) != getattr(EvaluateConfig, name):
                raise UserError(f"--{name}: is for {' and '.join(tasks)}, not for {family}")
        if self.data is None and family not in ("perplexity", "preference", "lm_eval"):
            raise UserError(f"--data: needed by {family}: a .jsonl or .json file, or tfds:NAME:SPLIT")
        if self.fewshot_data is not None and self.num_fewshot == 0:
            raise UserError("--fewshot_data: set --num_fewshot too, the number of examples to take from it")
        if not 0 <= self.max_bad_fraction <= 1:
            raise UserError(f"--max_bad_fraction {self.max_bad_fraction}: must lie between 0 and 1")
        for name, least in (("limit", 1), ("stride", 1), ("batch_size", 1), ("num_fewshot", 0), ("sequence_length", 2)):
            if (value := getattr(self, name)) is not None and value < least:
                raise UserError(f"--{name} {value}: must be at least {least}")
