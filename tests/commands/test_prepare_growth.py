"""What preparing costs as the corpus grows, by the real command."""

import json
import random
import sys

import pytest
from planted import changed, random_text
from small_tokenizers import llama2c_file

from llama_jax.benchmarks.preparing.measured import measured

SETTINGS = {
    "deduplicate": "true",
    "near_duplicates.threshold": 0.75,
    "paragraphs": "source",
    "shard_megabytes": 4,
    "workers": 1,
}


@pytest.mark.slow
def test_four_times_the_documents_take_four_times_as_long_in_the_same_memory(tmp_path, capsys) -> None:
    tokenizer = tmp_path / "tokenizer.bin"
    tokenizer.write_bytes(llama2c_file([(b" ", 0.0)]))
    results = []
    for documents in (25_000, 100_000):
        rng, recent = random.Random(0), [random_text(random.Random(1), 150)]
        source = tmp_path / f"{documents}.jsonl"
        with source.open("w") as file:
            for _ in range(documents):
                is_near = rng.random() < 0.1
                text = changed(rng.choice(recent), 0.01, rng) if is_near else random_text(rng, rng.randint(100, 200))
                recent = [*recent[-999:], text]
                file.write(json.dumps({"text": text}) + "\n")
        places = {"data.source": source, "data.tokenizer": tokenizer, "output": tmp_path / str(documents)}
        settings = [part for name, value in {**places, **SETTINGS}.items() for part in (f"--{name}", str(value))]
        results.append(measured([sys.executable, "-m", "llama_jax.prepare", *settings], tmp_path / "printed"))
        with capsys.disabled():
            taken = results[-1]
            print(f"{documents:,} documents: {taken.processor_seconds:.1f} s, {taken.peak_bytes / 2**20:.0f} MiB")
    small, large = results
    assert large.processor_seconds < 4.4 * small.processor_seconds
    assert large.peak_bytes < 1.3 * small.peak_bytes
