"""What preparing costs as the corpus grows, by the real command."""

import json
import random
import resource
import subprocess
import sys

import pytest
from planted import changed, random_text

SETTINGS = ("--deduplicate", "true", "--near_duplicates.threshold", "0.75", "--paragraphs", "source")


@pytest.mark.slow
def test_four_times_the_documents_take_four_times_as_long_in_the_same_memory(tmp_path, capsys) -> None:
    measured = []
    for documents in (50_000, 200_000):
        rng, recent = random.Random(0), [random_text(random.Random(1), 150)]
        source, output = tmp_path / f"{documents}.jsonl", tmp_path / str(documents)
        with source.open("w") as file:
            for _ in range(documents):
                is_near = rng.random() < 0.1
                text = changed(rng.choice(recent), 0.01, rng) if is_near else random_text(rng, rng.randint(100, 200))
                recent = [*recent[-999:], text]
                file.write(json.dumps({"text": text}) + "\n")
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-m", "llama_jax.prepare", "--data.source", source, "--output", output]
        subprocess.run([*map(str, command), *SETTINGS, "--shard_megabytes", "16", "--workers", "1"], check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        measured.append((seconds, after.ru_maxrss / 1024))
        with capsys.disabled():
            print(f"{documents:,} documents: {seconds:.1f} s of processors, {after.ru_maxrss / 1024:.0f} MB at most")
    (small_seconds, small_memory), (large_seconds, large_memory) = measured
    assert large_seconds < 4.4 * small_seconds
    assert large_memory < 1.25 * small_memory + 10
