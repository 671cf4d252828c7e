"""Runners: every element is made, whatever becomes of processes and pipelines, and what cannot be is said."""

import os
from collections.abc import Callable
from pathlib import Path

import faulty_work
import pytest
from etils import epath

from llama_jax.core.errors import CannotGoOnError, UserError
from llama_jax.data.preparation.cleaning import Cleaning
from llama_jax.data.preparation.job import Job, Pass, Runner
from llama_jax.data.preparation.report.origins import origins_of
from llama_jax.data.preparation.runners.beam import BeamRunner
from llama_jax.data.preparation.runners.beam_options import beam_options
from llama_jax.data.preparation.runners.local import LocalRunner
from llama_jax.data.sources.documents import TextDocuments

ELEMENTS = 4


@pytest.fixture
def job(tmp_path, byte_tokenizer) -> Job:
    job = Job(
        documents=TextDocuments(),
        tokenizer=byte_tokenizer,
        cleaning=Cleaning(),
        bounds=[0],
        directory=epath.Path(tmp_path),
        fail_on_bad=False,
        origins=origins_of(TextDocuments(), "none"),
    )
    job.progress.mkdir()
    return job


class Counts:
    """What a runner says of its progress."""

    def __init__(self) -> None:
        self.documents = 0

    def count(self, documents: int, text_bytes: int, tokens: int) -> None:
        self.documents += documents

    def tick(self) -> None:
        pass


def make(job: Job, runner: Runner, work: Callable) -> Counts:
    """Make a pass of four elements; the first is there already."""
    task = Pass("making", work, [1] * ELEMENTS, lambda number: job.progress / f"made-{number}")
    (job.progress / "made-0").write_text("element 0")
    counts = Counts()
    with runner:
        assert sorted(runner.made(task, task.missing(), counts)) == [1, 2, 3]
    assert [path.read_text() for path in sorted(job.progress.glob("made-*"))] == [f"element {n}" for n in range(4)]
    assert not list(job.directory.glob("*.tmp"))
    return counts


@pytest.fixture
def importable(monkeypatch) -> None:
    """What faulty work is can be told to Beam's processes, too."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)


def beam(job: Job, **options: object) -> BeamRunner:
    pytest.importorskip("apache_beam")
    return BeamRunner(job, beam_options(options, workers=0))


SEVERAL = {"direct_num_workers": 2, "direct_running_mode": "multi_processing"}


def test_a_process_that_dies_is_replaced_and_its_element_counted_once(job, capfd) -> None:
    assert make(job, LocalRunner(job, 1), faulty_work.dies_once).documents == 3
    assert "a worker process died" in capfd.readouterr().out


@pytest.mark.slow
def test_an_element_that_kills_every_process_ends_the_work(job) -> None:
    with pytest.raises(CannotGoOnError, match="a worker process died, perhaps for lack of memory"):
        make(job, LocalRunner(job, 1), faulty_work.dies)


def test_beam_makes_what_is_missing(job, capfd) -> None:
    assert make(job, beam(job), faulty_work.makes).documents == 3
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["multi_processing", "multi_threading"])
def test_several_workers_of_beam_make_what_is_missing(job, importable, mode) -> None:
    options = {**SEVERAL, "direct_running_mode": mode}
    assert make(job, beam(job, **options), faulty_work.fails_once).documents == 3


@pytest.mark.slow
def test_a_worker_of_beam_that_dies_is_made_good(job, importable) -> None:
    assert make(job, beam(job, **SEVERAL), faulty_work.dies_once).documents == 3


@pytest.mark.slow
def test_an_element_that_kills_every_worker_of_beam_ends_the_work(job, importable) -> None:
    with pytest.raises(CannotGoOnError, match="a worker process of Beam died"):
        make(job, beam(job, **SEVERAL), faulty_work.dies)


@pytest.mark.slow
def test_a_refusal_by_a_worker_of_beam_is_the_commands(job, importable) -> None:
    for _ in range(2):  # what the first leaves does not stop the second
        with pytest.raises(UserError, match=r"^data\.source: element 1 is not text$"):
            make(job, beam(job, **SEVERAL), faulty_work.refuses)


def test_a_job_that_was_changed_is_not_unpickled(job) -> None:
    from llama_jax.data.preparation.runners import beam as module

    address = module._Address.of(job)
    assert module._job(address).directory == job.directory
    epath.Path(address.path).write_bytes(b"something else")
    with pytest.raises(UserError, match="was changed"):
        module._loaded.__wrapped__(address)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"direct_num_worker": 2}, "--beam.direct_num_worker: Apache Beam has no such option; did you mean"),
        ({"direct_num_workers": "two"}, "--beam.direct_num_workers: invalid int value: 'two'"),
        ({"streaming": "perhaps"}, "--beam.streaming perhaps: is true or false"),
        ({"runner": "FlinkRuner"}, "--beam.runner FlinkRuner: Unexpected pipeline runner"),
    ],
)
def test_mistakes_in_options_of_beam_are_named(options, message) -> None:
    pytest.importorskip("apache_beam")
    with pytest.raises(UserError) as refused:
        beam_options(options, workers=None)
    assert str(refused.value).startswith(message)


def test_options_of_beam_are_those_of_its_command_line() -> None:
    pytest.importorskip("apache_beam")
    local = beam_options({"experiments": ["a", "b"], "streaming": "true"}, workers=3)
    assert local.is_local
    assert set(local.arguments) == {
        "--runner=FnApiRunner",
        "--direct_num_workers=3",
        "--direct_running_mode=multi_processing",
        "--experiments=a",
        "--experiments=b",
        "--streaming",
    }
    remote = beam_options({"runner": "PortableRunner", "job_endpoint": "localhost:8099"}, workers=3)
    assert remote == (["--runner=PortableRunner", "--job_endpoint=localhost:8099"], False)
