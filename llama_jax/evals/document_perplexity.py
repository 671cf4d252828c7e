"""The perplexity of documents one by one, as a measure for the preparation of text."""

import functools
import math
import multiprocessing
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from llama_jax.checkpoints.opening import ModelReference, open_model
from llama_jax.core.config import MeshConfig
from llama_jax.core.errors import UserError
from llama_jax.core.mesh import make_mesh
from llama_jax.data.sources.opening import errors_of
from llama_jax.data.tokenizers import Tokenizer
from llama_jax.evals.perplexity import windows
from llama_jax.evals.scoring import Scorer
from llama_jax.evals.session import params_fingerprint
from llama_jax.model.config import ComputeConfig
from llama_jax.runs.held_out import bounded_exp


class DocumentPerplexity:
    """exp of the nats per token of a text by a model, BOS given, EOS and all between scored, in windows of the model's
    context one after the other.

    Always computed on one device of the CPU in float32, and in batches of one row, so that a text has the same
    perplexity, to the bit, in every process of a machine and beside any other text. Travels by pickle as the name of
    the model, which each process opens on the first call.

    Args:
        model: as `--model` takes it.
        tokens: how many of a text are scored at the most, from its start.

    Raises:
        UserError: the model cannot be opened.
    """

    def __init__(self, model: str, tokens: int) -> None:
        self._model, self._tokens = model, tokens
        self.identity = _open(model).identity

    def __call__(self, text: str) -> float:
        """The perplexity of a text, by token.

        Raises:
            UserError: the model is another by now.
        """
        opened = _open(self._model)
        if opened.identity != self.identity:
            raise UserError(f"--perplexity.model {self._model}: has changed since the work began; run it again")
        ids = opened.tokenizer.encode(text, bos=True, eos=True)[: self._tokens + 1]
        with jax.set_mesh(opened.mesh):
            requests = list(windows(ids, opened.length, opened.length))
            logprobs = [score.logprob for _, score in sorted(opened.scorer.scores(requests))]
        return bounded_exp(-math.fsum(logprobs) / (len(ids) - 1))


class _Opened(NamedTuple):
    """A model in this process."""

    tokenizer: Tokenizer
    scorer: Scorer
    length: int
    """Tokens of a window."""
    mesh: Mesh
    identity: str


@functools.cache
def _open(path: str) -> _Opened:
    if multiprocessing.parent_process() is not None:
        jax.config.update("jax_platforms", "cpu")  # many processes cannot share an accelerator, nor need it here
    mesh = make_mesh(MeshConfig(), jax.devices("cpu")[:1])
    with jax.set_mesh(mesh), errors_of("--perplexity.model", instead_of="--model"):
        opened = open_model(ModelReference(path), ComputeConfig(dtype="float32"), say=print)
        length = opened.model.config.context_length
        scorer = Scorer(opened.model, opened.params, rows=1, context_length=length)
        identity = f"{params_fingerprint(opened.params)}, tokenizer {opened.tokenizer.fingerprint}"
    return _Opened(opened.tokenizer, scorer, length, mesh, identity)
