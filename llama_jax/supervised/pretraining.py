"""Training on text: the documents, the tokenizer, what is held out of them and how well it is predicted."""

import functools
import json

import jax

from llama_jax.core import tree
from llama_jax.core.arrays import PyTree
from llama_jax.core.placing import local_rows
from llama_jax.core.processes.distributed import from_main_process, is_main_process
from llama_jax.core.recording.metrics import MetricsRecord
from llama_jax.core.run_directory import RunDirectory
from llama_jax.data.rows.loader import Loader, text_bytes, usable_documents, validation_batches, zlib_bits_per_byte
from llama_jax.data.rows.mixture import Mixture, open_mixture
from llama_jax.data.sources.bad_records import BadRecords
from llama_jax.data.sources.documents import Documents
from llama_jax.data.tokenizers import Tokenizer, load_tokenizer, train_tokenizer
from llama_jax.runs.description import description
from llama_jax.runs.held_out import perplexity
from llama_jax.runs.supervised_run import Task, train
from llama_jax.supervised.config import PretrainConfig
from llama_jax.training.program import Program
from llama_jax.training.state import TrainState


def train_on_text(config: PretrainConfig, run: RunDirectory, program: Program) -> None:
    """Train from scratch, or from the newest checkpoint, in a run that is open.

    Raises:
        UserError: the data, the tokenizer or the run do not fit the configuration.
        SavedAfterSignal: a signal ended it before the last step.
    """
    run.say(description(program, config.model.size))
    training, held_out = open_mixture(config.data).hold_out(config.data.validation_fraction)
    for line in training.description():
        run.say(f"data: {line}")
    tokenizer = _tokenizer(config, run, training)
    loader = Loader(
        training,
        tokenizer,
        config.data,
        config.seed,
        batch_size_at=config.training.batch_size_at,
        rows_of=functools.partial(local_rows, program.mesh),
        # Each process reads streams of its own, and only it knows their bad records.
        say=run.say if is_main_process() else functools.partial(print, flush=True),
    )
    with jax.set_mesh(program.mesh):
        # A share of so few tells nothing; that of the training documents is watched.
        bad = BadRecords("the held-out documents", config.data.bad_records, 1.0, say=run.say)
        validation = _Validation(config, program, tokenizer, usable_documents(held_out, tokenizer, bad))
        task = Task(
            program=program,
            data=loader,
            fresh=lambda: program.init(jax.random.key(config.seed)),
            evaluate=validation,
            files=_model_files(config, tokenizer),
            hashes={"tokenizer": tokenizer.fingerprint},
        )
        if train(config, run, task):
            _say_result(run, validation)


def _tokenizer(config: PretrainConfig, run: RunDirectory, training: Mixture) -> Tokenizer:
    """The tokenizer named, or that of the prepared sources, or the run's own, trained at its start."""
    vocab_size, kept = config.model.vocab_size, run.path / "tokenizer.model"

    def content() -> bytes:
        # Before the first step the configuration may still change, so a tokenizer from then is made anew.
        if kept.exists() and run.has_progress():
            return kept.read_bytes()
        run.say(f"training a tokenizer of {vocab_size} pieces on the documents")
        made = train_tokenizer(training.texts(training.bad_records(config.data)), vocab_size).to_bytes()
        run.keep(kept, made)
        return made

    def own() -> Tokenizer:
        return load_tokenizer(kept, from_main_process(content))

    return training.tokenizer(config.data.tokenizer, vocab_size, own)


def _model_files(config: PretrainConfig, tokenizer: Tokenizer) -> dict[str, bytes]:
    """What makes a checkpoint usable by itself: model config and tokenizer."""
    files = {f"model/{name}": content for name, content in tokenizer.files().items()}
    return files | {"model/config.json": json.dumps(config.model.architecture.to_json(), indent=2).encode()}


class _Validation:
    """Evaluates on the held-out documents; remembers the last result."""

    def __init__(self, config: PretrainConfig, program: Program, tokenizer: Tokenizer, documents: Documents) -> None:
        self.documents = documents
        self.last: MetricsRecord | None = None
        self.tokenizer = tokenizer
        self._model = program.model
        self._bytes = text_bytes(documents, tokenizer)
        rows = config.training.batch_size // config.training.microbatches
        self._batches = lambda: validation_batches(documents, tokenizer, config.data, rows)

    def __call__(self, state: TrainState, frozen: PyTree) -> MetricsRecord:
        params = tree.join(state.trainable, frozen)
        self.last = perplexity(self._model, params, self._batches(), self._bytes)
        return {"validation_loss": self.last["loss"], "validation_bits_per_byte": self.last["bits_per_byte"]}


def _say_result(run: RunDirectory, validation: _Validation) -> None:
    """Say what came of it."""
    if validation.last is None or not is_main_process():
        return
    run.say(
        f"validation on {len(validation.documents)} held-out documents: "
        f"{validation.last['bits_per_byte']:.3f} bits per byte ({validation.last['loss']:.4f} nats per token); "
        f"zlib needs {zlib_bits_per_byte(validation.documents, validation.tokenizer):.3f} for the same text"
    )
    run.say(f"checkpoint, metrics.jsonl and curves.png are in {run.path}")
    run.say(f'try it: python -m llama_jax.generate --model {run.path} --prompt "The "')
