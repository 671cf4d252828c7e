"""The reward model of a run: an adapter and a head over the base of the policy, where it was trained over that, or a
model of its own."""

import functools
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import jax
import numpy as np

from llama_jax.checkpoints.adapters.adapter import Adapter, check_base
from llama_jax.checkpoints.config import StepChoice
from llama_jax.checkpoints.finding import find_format
from llama_jax.checkpoints.opening import ModelReference, OpenParams, open_params, with_adapters
from llama_jax.checkpoints.reward_normalization import RewardNormalization, read_normalization, read_padding
from llama_jax.checkpoints.weight_reading import open_adapter
from llama_jax.core import tree
from llama_jax.core.arrays import Float, PyTree
from llama_jax.core.errors import UserError
from llama_jax.data.tokenizers import Tokenizer, has_tokenizer, tokenizer_from_files
from llama_jax.model.config import AdapterConfig, LlamaConfig
from llama_jax.model.llama import LanguageModel
from llama_jax.model.lora import merge
from llama_jax.rl.learners.opened import Opened
from llama_jax.rl.ppo_config import PpoConfig
from llama_jax.rl.rollouts import Rollouts, ending_before
from llama_jax.rl.updates import read, row_scores


@dataclass(frozen=True)
class OpenRewardModel:
    """A reward model on the mesh."""

    model: LanguageModel
    params: PyTree
    """Of an adapter over the base of the policy, the arrays of that base are those of the policy."""
    normalization: RewardNormalization
    padding: int | None
    """The id before which it is read where a completion ends with it, see `read_padding`."""
    adapter: AdapterConfig | None = None
    """That of such an adapter; None: the model is one of its own."""
    fingerprint: str = ""
    """Of what was trained: the adapter and its head, or the whole model; empty: it was not asked for."""

    @classmethod
    def of(
        cls, found: OpenParams, path: str, adapter: AdapterConfig | None = None, fingerprint: str = ""
    ) -> "OpenRewardModel":
        """One that was opened, with what travels with its weights.

        Args:
            path: For messages.
        """
        normalization = read_normalization(found.files, path) or RewardNormalization()
        padding = read_padding(found.files, path)
        return cls(found.model, found.params, normalization, padding, adapter, fingerprint)

    def scores(self, size: int, row_length: int, rollouts: Rollouts) -> Float[np.ndarray, "N"]:
        """What it gives where each completion ends, on the scale that its run has measured.

        Args:
            size: Rows that are read at a time.
        """
        if self.padding is not None:
            rollouts = ending_before(rollouts, self.padding)
        of_rows = functools.partial(row_scores, self.model, self.params)
        found = read(of_rows, rollouts, jax.sharding.get_mesh(), size, row_length, reads_end=True)
        ends = np.take_along_axis(found, rollouts.lengths[:, None], axis=1)[:, 0]
        return np.asarray(self.normalization(ends), np.float32)


def open_reward_model(opened: Opened[PpoConfig], path: str) -> OpenRewardModel:
    """The reward model at a path; called on the mesh.

    Raises:
        UserError: nothing is there, or a model that gives no score, or one with another vocabulary, or whose context is
            shorter than the rows of the run.
    """
    config, say, base = opened.config, opened.run.say, opened.start.base
    adapter = None if base is None else _adapter_over(base, path, config.reward_step, say)
    if adapter is not None and base is not None:
        found, trained = with_adapters(base, [adapter]), (adapter.factors, adapter.saved_modules)
        say(f"reward model: {path}, an adapter over the model that the policy is one over")
    else:
        reference = ModelReference(path, config.reward_step)
        found = open_params(reference, config.compute, store=config.model_dtype, identify=False, say=say)
        found = replace(found, params=merge(found.params))
        trained = found.params
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(trained))
        say(f"reward model: {path}, a model of its own beside the policy's, {size:,} bytes")
    _check(opened, found, path)
    return OpenRewardModel.of(found, path, None if adapter is None else adapter.config, fingerprint_of(trained))


def check_reads_ends(row_length: int, longest: tuple[int, int]) -> None:
    """See to it that a row holds the longest prompt with the longest completion, whose last token is read too.

    Raises:
        UserError: it does not.
    """
    if sum(longest) > row_length:
        raise UserError(
            f"row_length: {row_length} is less than the {sum(longest)} tokens that a prompt may have with its "
            "completion, all of which the reward model reads"
        )


def check_reads(
    architecture: LlamaConfig, files: Mapping[str, bytes], path: str, config: PpoConfig, tokenizer: Tokenizer
) -> None:
    """See to it that a model gives scores, and of what the policy writes.

    Args:
        architecture: Of the model at the path.
        files: Beside its weights.
        config: Of the run.
        tokenizer: Of the policy.

    Raises:
        UserError: it is a language model, has another vocabulary, or a shorter context than the rows of the run.
    """
    said, longest = f"--reward_model {path}", config.row_length
    if not architecture.scalar_head:
        raise UserError(f"{said}: is a language model, which gives no score; take a run of reward")
    if architecture.context_length < longest:
        raise UserError(f"row_length: {longest} exceeds the context of the reward model, {architecture.context_length}")
    if has_tokenizer(files) and not _reads_as(tokenizer_from_files(files, path), tokenizer):
        raise UserError(f"{said}: has another vocabulary than {config.model}; take one trained from that")


def fingerprint_of(params: PyTree) -> str:
    """SHA-256 in hexadecimal of the values of parameters, wherever they lie."""
    leaves = jax.tree.leaves(jax.jit(tree.fingerprints)(params))
    return hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in leaves)).hexdigest()


def _adapter_over(base: OpenParams, path: str, step: StepChoice | None, say: Callable[[str], None]) -> Adapter | None:
    """The adapter at a path, if there is one, and the base is its own."""
    _, kind = find_format(path, "--reward_model")
    if kind not in ("lora", "peft"):
        return None
    source = open_adapter(path, step=step, say=say)
    if source.base is None:
        return None
    try:
        check_base(source.base, base.identity, source.source)
    except UserError as error:
        say(f"reward model: {error}")
        return None
    return source.read(base.model.config)


def _check(opened: Opened[PpoConfig], found: OpenParams, path: str) -> None:
    check_reads(found.model.config, found.files, path, opened.config, opened.tokenizer)
    check_reads_ends(opened.config.row_length, opened.longest)
    template = found.files.get("chat_template.jinja")
    if template is not None and template.decode() != opened.layout.chat_template:
        opened.run.say("note: the reward model was taught with another template than the policy is asked with")


def _reads_as(theirs: Tokenizer, ours: Tokenizer) -> bool:
    """Whether what ours writes is the same to theirs, in whichever format the two are: each id, and each name of a
    control token. Theirs may have more, such as one for padding."""
    tokens, names = ours.token_bytes(), ours.special_tokens.items()
    return theirs.token_bytes()[: len(tokens)] == tokens and names <= theirs.special_tokens.items()
