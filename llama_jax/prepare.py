"""Turn text into shards of token ids: `python -m llama_jax.prepare`."""

if __name__ == "__main__":
    from llama_jax.__main__ import main

    main("prepare")

from etils import epath

from llama_jax.core.files import absolute, write_whole
from llama_jax.core.processes.signals import StopSignal
from llama_jax.data.preparation.beginning import settled
from llama_jax.data.preparation.cleaning import Cleaning
from llama_jax.data.preparation.config import PrepareConfig
from llama_jax.data.preparation.job import Job
from llama_jax.data.preparation.near.making import searches_of
from llama_jax.data.preparation.report.asked import overlap_lines, overlaps_of
from llama_jax.data.preparation.report.funnel import funnel_lines
from llama_jax.data.preparation.report.origins import origins_of
from llama_jax.data.preparation.resuming import plan_to_resume, remove_progress, settings_of, sole_writer
from llama_jax.data.preparation.rules.making import rules_of
from llama_jax.data.preparation.rules.perplexity import PerplexityOf
from llama_jax.data.preparation.runners.making import runner_of
from llama_jax.data.preparation.writing import described, write_manifest, write_shards
from llama_jax.data.sources.opening import open_source
from llama_jax.data.sources.prepared import MANIFEST, PAGE, open_prepared


def prepare(config: PrepareConfig) -> None:
    """Write the token ids of a source below `output`: shards, the tokenizer, what was dropped, and a manifest."""
    directory = absolute(epath.Path(config.output).expanduser())
    runner = runner_of(config)
    documents = open_source(config.data.source, config.data.text_field)
    perplexity = _perplexity(config)
    settings = settings_of(config, perplexity)
    if (directory / MANIFEST).exists():
        plan_to_resume(directory, config, settings, documents)
        remove_progress(directory)
        print(f"{config.output} is prepared already: {described(open_prepared(directory).manifest)}")
        return
    with sole_writer(directory, config):
        plan, tokenizer = settled(config, directory, settings, documents)
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
        with StopSignal() as stop:
            plan.write(directory)
            for name, content in tokenizer.files().items():
                write_whole(directory / name, content)
            write_shards(config, job, runner(job), stop)
            funnel = write_manifest(config, job, plan)
    print(f"{config.output}: {described(open_prepared(directory).manifest)}")
    for line in overlap_lines(overlaps_of(directory, config.contamination)):
        print(line)
    if funnel.steps:
        print("\n".join(funnel_lines(funnel)))
        print(f"what each step took, with samples: {directory / PAGE}")
    print(f"train on it: python -m llama_jax.pretrain --data.source {config.output}")


def _perplexity(config: PrepareConfig) -> PerplexityOf | None:
    """The model that measures, if one is to."""
    if config.perplexity.model is None:
        return None
    from llama_jax.evals.perplexity import DocumentPerplexity  # JAX is for those who need it

    return DocumentPerplexity(config.perplexity.model, config.perplexity.tokens)
