"""Turn text into shards of token ids: `python -m llama_jax.prepare`."""

if __name__ == "__main__":
    from llama_jax.__main__ import main

    main("prepare")

import os

from etils import epath

from llama_jax.core.files import absolute, write_whole
from llama_jax.core.processes.signals import StopSignal
from llama_jax.data.preparation.cleaning import Cleaning
from llama_jax.data.preparation.config import PrepareConfig
from llama_jax.data.preparation.job import Job, Runner
from llama_jax.data.preparation.near.making import searches_of
from llama_jax.data.preparation.report.asked import overlap_lines, overlaps_of
from llama_jax.data.preparation.report.funnel import Funnel, funnel_lines
from llama_jax.data.preparation.report.origins import origins_of
from llama_jax.data.preparation.resuming import Plan, plan_to_resume, remove_progress, settings_of, sole_writer
from llama_jax.data.preparation.rules.making import rules_of
from llama_jax.data.preparation.rules.perplexity import PerplexityOf
from llama_jax.data.preparation.runners.beam import BeamRunner
from llama_jax.data.preparation.runners.beam_options import BeamOptions, beam_options
from llama_jax.data.preparation.runners.local import LocalRunner
from llama_jax.data.preparation.shards import sampled_texts, shard_bounds
from llama_jax.data.preparation.writing import described, write_manifest, write_shards
from llama_jax.data.sources.documents import Documents
from llama_jax.data.sources.opening import open_source
from llama_jax.data.sources.prepared import MANIFEST, PAGE, open_prepared
from llama_jax.data.tokenizers import Tokenizer, load_tokenizer, train_tokenizer
from llama_jax.data.tokenizers.loading import MODEL_FILES

_TRAINING_BYTES = 2**25  # of text: the trainer of tokenizers holds it in memory several times over


def prepare(config: PrepareConfig) -> None:
    """Write the token ids of a source below `output`: shards, the tokenizer, what was dropped, and a manifest."""
    directory = absolute(epath.Path(config.output).expanduser())
    beam = beam_options(config.beam, config.workers) if config.runner == "beam" else None
    documents = open_source(config.data.source, config.data.text_field)
    perplexity = _perplexity(config)
    settings = settings_of(config, perplexity)
    if (directory / MANIFEST).exists():
        plan_to_resume(directory, config, settings, documents)
        remove_progress(directory)
        print(f"{config.output} is prepared already: {described(open_prepared(directory).manifest)}")
        return
    with sole_writer(directory, config):
        plan = plan_to_resume(directory, config, settings, documents)
        tokenizer = _tokenizer(config, directory, documents, resumes=plan is not None)
        if plan is None:
            bounds = shard_bounds(documents, config.shard_megabytes)
            plan = Plan(documents.identity(), tokenizer.fingerprint, settings, bounds)
        job = Job(
            documents=documents,
            tokenizer=tokenizer,
            cleaning=Cleaning(config.minimum_characters, config.maximum_characters),
            bounds=plan.bounds,
            directory=directory,
            fail_on_bad=config.data.bad_records == "fail",
            origins=origins_of(documents, config.data.source),
            rules=rules_of(config, perplexity),
            searches=searches_of(config),
        )
        funnel = _make(config, plan, job, _runner(config, job, beam))
    print(f"{config.output}: {described(open_prepared(directory).manifest)}")
    for line in overlap_lines(overlaps_of(directory, config.contamination)):
        print(line)
    if funnel.steps:
        print("\n".join(funnel_lines(funnel)))
        print(f"what each step took, with samples: {directory / PAGE}")
    print(f"train on it: python -m llama_jax.pretrain --data.source {config.output}")


def _make(config: PrepareConfig, plan: Plan, job: Job, runner: Runner) -> Funnel:
    with StopSignal() as stop:
        plan.write(job.directory)
        for name, content in job.tokenizer.files().items():
            write_whole(job.directory / name, content)
        write_shards(config, job, runner, stop)
        return write_manifest(config, job, plan)


def _perplexity(config: PrepareConfig) -> PerplexityOf | None:
    """The model that measures, if one is to."""
    if config.perplexity.model is None:
        return None
    from llama_jax.evals.perplexity import DocumentPerplexity  # JAX is for those who need it

    return DocumentPerplexity(config.perplexity.model, config.perplexity.tokens)


def _runner(config: PrepareConfig, job: Job, options: BeamOptions | None) -> Runner:
    if options is not None:
        return BeamRunner(job, options)
    processes = (os.cpu_count() or 1) if config.workers is None else config.workers
    # One process more would start up for longer than it takes to write a single shard.
    return LocalRunner(job, 0 if job.shards == 1 and config.workers is None else processes)


def _tokenizer(config: PrepareConfig, directory: epath.Path, documents: Documents, *, resumes: bool) -> Tokenizer:
    """The tokenizer named, or one trained on the text, which is kept in the directory."""
    if config.data.tokenizer is not None:
        return load_tokenizer(config.data.tokenizer)
    if resumes and any((directory / name).exists() for name in MODEL_FILES):
        return load_tokenizer(directory)
    print(f"training a tokenizer of {config.vocab_size} pieces", flush=True)
    return train_tokenizer(sampled_texts(documents, _TRAINING_BYTES), config.vocab_size)
