"""Our models as models of lm-evaluation-harness (extra `eval`), on the same scorer and the same decoding as our tasks.

From Python: `lm_eval.simple_evaluate(model=LlamaJaxLM(model, params, tokenizer), tasks=[...])`. Needs no torch."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from llama_jax.core.arrays import PyTree
from llama_jax.core.errors import UserError, nearest
from llama_jax.data.tokenizers import Tokenizer
from llama_jax.evals.answers import Answerer
from llama_jax.evals.scoring import Scorer, encode_pair, request_of
from llama_jax.evals.session import Session
from llama_jax.inference.completion import encode_prompt
from llama_jax.inference.config import SamplingConfig
from llama_jax.model.llama import LanguageModel

_MAX_NEW_TOKENS = 256
"""Where a task does not say; the harness's own default."""


class LlamaJaxLM(LM):
    """A model for the harness. Requests are answered on the mesh in use, by all processes alike.

    Args:
        params: scanned layout, on the mesh.
        rows: rows of a batch.
        context_length: tokens of a row at the most; None: the model's context.
    """

    def __init__(
        self,
        model: LanguageModel,
        params: PyTree,
        tokenizer: Tokenizer,
        *,
        rows: int = 16,
        context_length: int | None = None,
    ) -> None:
        super().__init__()
        self._tokenizer, self._context_length = tokenizer, context_length or model.config.context_length
        shape = {"rows": rows, "context_length": self._context_length}
        self._scorer = Scorer(model, params, **shape)
        self._answerer = Answerer(model, params, tokenizer, **shape)
        self.counts = {"requests": 0, "truncated": 0}
        """Requests so far, and those of them that did not fit into the context."""

    @property
    def tokenizer_name(self) -> str:
        """Tells tokenizers apart in the harness's cache of requests."""
        return self._tokenizer.fingerprint

    @property
    def programs(self) -> int:
        """Programs compiled so far."""
        return self._scorer.program_count + self._answerer.program_count

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """(log-probability in nats, whether greedy) of each (context, continuation)."""
        pairs = [encode_pair(self._tokenizer, *request.args) for request in requests]
        results = [(0.0, False)] * len(requests)
        for number, score in self._scorer.scores(pairs):
            results[number] = score.logprob, score.greedy
            self.counts["truncated"] += score.truncated
        return self._kept("loglikelihood", requests, results)

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Log-probability in nats of each text after BOS, in the harness's windows as long as the context."""
        windows, owners = [], []
        for number, request in enumerate(requests):
            ids = self._tokenizer.encode(request.args[0])
            for window in get_rolling_token_windows(ids, self._tokenizer.bos_id, self._context_length, context_len=1):
                windows.append(request_of(*make_disjoint_window(window)))
                owners.append(number)
        results = [0.0] * len(requests)
        for index, score in self._scorer.scores(windows):
            results[owners[index]] += score.logprob
        return self._kept("loglikelihood_rolling", requests, results)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """What follows each (prompt, settings), up to a text of the setting `until`."""
        alike: dict[tuple[SamplingConfig, tuple[str, ...]], list[int]] = defaultdict(list)
        for number, request in enumerate(requests):
            settings: Any = request.args[-1]
            alike[_sampling(settings)].append(number)
        results = [""] * len(requests)
        for (sampling, stops), numbers in alike.items():
            prompts = [encode_prompt(self._tokenizer, requests[number].args[0]) for number in numbers]
            for index, answer in self._answerer.answers(prompts, sampling, stops):
                results[numbers[index]] = answer.text
                self.counts["truncated"] += answer.truncated
        return self._kept("generate_until", requests, results)

    def _kept(self, kind: str, requests: Sequence[Instance], results: list[Any]) -> list[Any]:
        """The results, counted and put into the harness's cache, if it has one."""
        self.counts["requests"] += len(requests)
        for request, result in zip(requests, results, strict=True):
            self.cache_hook.add_partial(kind, request.args, result)
        return results


def _sampling(settings: Mapping[str, Any]) -> tuple[SamplingConfig, tuple[str, ...]]:
    until = settings.get("until") or ()
    sampled = settings.get("do_sample", False)
    sampling = SamplingConfig(
        max_new_tokens=settings.get("max_gen_toks", _MAX_NEW_TOKENS),
        temperature=float(settings.get("temperature", 1.0)) if sampled else 0.0,
        top_k=settings.get("top_k", 0) if sampled else 0,
        top_p=float(settings.get("top_p", 1.0)) if sampled else 1.0,
    )
    return sampling, (until,) if isinstance(until, str) else tuple(until)


def evaluate(session: Session) -> dict[str, Any]:
    """The metrics of the harness's tasks that the settings name, by task, and what they were measured on."""
    config, opened = session.config, session.opened
    lm = LlamaJaxLM(
        opened.model, opened.params, opened.tokenizer, rows=config.batch_size, context_length=session.context_length
    )
    names = config.task.removeprefix("lm_eval:").split(",")
    few, limit = config.num_fewshot or None, config.limit
    result = harness_results(lm, names, include_path=config.include_path, num_fewshot=few, limit=limit)
    return result | lm.counts | {"programs": lm.programs}


def harness_results(
    lm: LlamaJaxLM, names: Sequence[str], *, include_path: str | None, num_fewshot: int | None, limit: int | None
) -> dict[str, Any]:
    """Run tasks of the harness; those in `include_path` (a directory of YAML files) come before its own.

    Returns:
        `results`, what the harness says of each task; `documents`, how many it measured on.

    Raises:
        UserError: there is no such task.
    """
    tasks = TaskManager(include_path=include_path, include_defaults=False) if include_path is not None else None
    if tasks is None or not set(names) <= set(tasks.all_tasks):
        tasks = TaskManager(include_path=include_path)  # reads thousands of files
    for name in names:
        if name not in tasks.all_tasks:
            raise UserError(f"--task lm_eval:{name}: the harness has no such task{nearest(name, tasks.all_tasks)}")
    settings: dict[str, Any] = {"num_fewshot": num_fewshot, "limit": limit, "log_samples": False}
    found: Any = simple_evaluate(lm, tasks=list(names), task_manager=tasks, **settings)  # pyright: ignore[reportCallIssue]
    return {
        "results": found["results"],
        "documents": sum(count["effective"] for count in found["n-samples"].values()),
    }
