"""A search over texts in memory: what its passes find, made as a runner makes them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from llama_jax.data.preparation.cleaning import Cleaning
from llama_jax.data.preparation.job import Job, Search
from llama_jax.data.preparation.report.origins import origins_of
from llama_jax.data.sources.documents import TextDocuments
from llama_jax.data.tokenizers import Llama2cTokenizer


def searched(
    directory: epath.PathLike, tokenizer: Llama2cTokenizer, texts: Sequence[str], shards: int, *searches: Search
) -> Job:
    """The job when all passes of all searches are done."""
    bounds = np.linspace(0, len(texts), shards + 1).astype(int).tolist()
    documents = TextDocuments(texts)
    job = Job(
        documents=documents,
        tokenizer=tokenizer,
        cleaning=Cleaning(),
        bounds=bounds,
        directory=epath.Path(directory),
        fail_on_bad=True,
        origins=origins_of(documents, "texts"),
        searches=searches,
    )
    job.progress.mkdir(parents=True, exist_ok=True)
    for search in searches:
        for shard in range(shards):
            notes = search.notes(job, shard)
            for document in job.documents_of(shard):
                notes.add(document, texts[document])
            notes.write()
    for search in searches:
        for task in search.passes(job):
            for number in range(len(task.amounts)):
                task.work(job, number, lambda *_: None)
            assert not task.missing()
    return job


def dropped(job: Job, search: Search) -> dict[int, Any]:
    """What a search drops, of all shards."""
    return {document: why for shard in range(job.shards) for document, why in search.dropped(job, shard).items()}
