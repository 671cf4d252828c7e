"""Preparing by the real command: what is written, that it does not depend on who wrote it or how often they were
killed, and what is refused."""

import json
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import command_runs
import pytest
from etils import epath
from object_store import object_store, put

from llama_jax.data.sources.prepared import open_prepared
from llama_jax.data.tokenizers import load_tokenizer

SHARDS = 12


def texts() -> list[str]:
    chosen = random.Random(0)
    words = ["".join(chosen.choices("abcdefghijklmnopqrstuvwxyz", k=chosen.randint(2, 8))) for _ in range(300)]
    return [" ".join(chosen.choices(words, k=chosen.randint(100, 400))) for _ in range(360)]


TEXTS = texts()
NEAR = {5: 60}
"""Documents that are almost the same as another, and which."""
TEXTS[60] = f"{TEXTS[5]} and more"
DUPLICATES = {50: 3, 51: 3, 200: 3, 358: 90}
"""Documents that repeat an earlier one but for white space, and which."""
DROPPED = {10: "missing_field", 20: "not_json", 30: "empty", 40: "too_short", 359: "not_json"}
BAD = (10, 20, 30, 359)
"""Those that are no usable record; the others are left out by cleaning."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    lines = []
    for number, text in enumerate(TEXTS):
        content = {30: " \n ", 40: "short"}.get(number, text.replace(" ", "\r\n", 1))
        if number in DUPLICATES:
            content = TEXTS[DUPLICATES[number]].replace(" ", " \n\t") + "\n"
        line = json.dumps({"text": content})
        lines.append({10: '{"body": 1}', 20: line[:-9], 359: "]"}.get(number, line))
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def arguments(corpus) -> list[object]:
    """All but the output directory."""
    tokenizer = corpus.parent / "tokenizer.model"
    assert command_runs.call("tokenizer", "--data.source", "pydoc", "--vocab_size", 400, "--output", tokenizer) == 0
    settings = {
        "data.source": corpus,
        "data.tokenizer": tokenizer,
        "data.max_bad_fraction": 0.02,
        "deduplicate": "true",
        "near_duplicates.threshold": 0.75,
        "paragraphs": "source",
        "minimum_characters": 6,
        "shard_megabytes": sum(map(len, TEXTS)) / 1e6 / (SHARDS - 0.5),
    }
    return [part for name, value in settings.items() for part in (f"--{name}", value)]


@pytest.fixture(scope="module")
def reference(arguments, tmp_path_factory) -> Path:
    """What is written without interruption, by one thread."""
    folder = tmp_path_factory.mktemp("reference") / "prepared"
    assert command_runs.call("prepare", *arguments, "--output", folder, "--workers", 0) == 0
    return folder


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_document_is_written_once_or_named_with_its_reason(corpus, reference) -> None:
    documents, tokenizer = open_prepared(reference), load_tokenizer(reference)
    left_out = {*DUPLICATES, *DROPPED, *NEAR}
    kept, seen = [], set()
    for text in (text for number, text in enumerate(TEXTS) if number not in left_out):
        first, rest = text.split(" ", 1)  # a paragraph of its own, and often like an earlier one
        kept.append(rest if first in seen else f"{first}\n{rest}")
        seen.add(first)
    assert [documents[index].tolist() for index in range(len(documents))] == [
        tokenizer.encode(text, bos=True, eos=True) for text in kept
    ]
    manifest = documents.manifest
    assert (manifest.source_documents, manifest.documents) == (360, 360 - len(left_out))
    assert manifest.text_bytes == sum(map(len, kept))
    assert manifest.tokens == sum(len(documents[index]) for index in range(len(documents)))
    reasons = {"duplicate": 4, "empty": 1, "missing_field": 1, "near_duplicate": 1, "not_json": 2, "too_short": 1}
    assert manifest.dropped == reasons
    assert manifest.tokenizer == tokenizer.fingerprint
    assert len(manifest.shards) == SHARDS
    dropped = [json.loads(line) for line in (reference / "dropped.jsonl").read_text().splitlines()]
    reasons = DROPPED | dict.fromkeys(DUPLICATES, "duplicate") | dict.fromkeys(NEAR, "near_duplicate")
    assert [(each["document"], each["reason"]) for each in dropped] == sorted(reasons.items())
    assert {each["document"]: each["of"] for each in dropped if "of" in each} == DUPLICATES | NEAR
    assert [each["where"] for each in dropped if "where" in each] == [f"{corpus}:{number + 1}" for number in BAD]
    report = json.loads((reference / "report.json").read_text())
    funnel, source = report["funnel"], report["sources"]["corpus.jsonl"]
    assert funnel["kept"] == {"documents": manifest.documents, "bytes": manifest.text_bytes}
    assert {step["name"]: step["documents"] for step in funnel["steps"] if not step["edits"]} == manifest.dropped
    last = ["too_short", "duplicate", "near_duplicate", "repeated_paragraphs"]
    assert [step["name"] for step in funnel["steps"]][-4:] == last
    assert funnel["steps"][-1]["left"] == funnel["kept"] and source["read"] == funnel["read"]


def test_processes_write_what_one_thread_writes(arguments, reference, tmp_path) -> None:
    assert command_runs.call("prepare", *arguments, "--output", tmp_path / "out", "--workers", 3) == 0
    assert content_of(tmp_path / "out") == content_of(reference)


def children(process: int) -> list[int]:
    folder = Path(f"/proc/{process}/task/{process}/children")
    return [int(child) for child in folder.read_text().split()] if folder.exists() else []


def is_running(process: int) -> bool:
    status = Path(f"/proc/{process}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def kill_when(ready: Callable[[], bool], arguments, folder: Path, output: Path, delay: float = 0) -> bool:
    """Start preparing and kill it once `ready`, its processes not with it; returns whether it was killed. The processes
    must leave by themselves."""
    with command_runs.started("prepare", *arguments, "--output", folder, "--workers", 2, output=output) as process:
        while process.poll() is None and not ready():
            time.sleep(0.005)
        time.sleep(delay)
        workers = children(process.pid)
        process.kill()
        result = command_runs.ended(process, output)
    deadline = time.monotonic() + 120
    while any(map(is_running, workers)):
        assert time.monotonic() < deadline, "a worker process outlives its parent"
        time.sleep(0.01)
    assert result.code in (0, -signal.SIGKILL), result
    return result.code != 0


def count(folder: Path, pattern: str) -> int:
    return len(list(folder.glob(pattern)))


@pytest.mark.slow
def test_preparing_that_is_killed_again_and_again_writes_the_same(arguments, reference, tmp_path) -> None:
    folder, output = tmp_path / "out", tmp_path / "printed"
    places = [
        lambda: count(folder, "progress/examined-*.json") >= 3,
        lambda: count(folder, "progress/shard-*.json") >= 2,
        lambda: count(folder, "progress/shard-*.json") >= 7,
    ]
    for ready in places:
        assert kill_when(ready, arguments, folder, output)
        assert not (folder / "manifest.json").exists()
    numbers = [path.stem.removeprefix("shard-") for path in (folder / "progress").glob("shard-*.json")]
    kept = {
        path: path.stat().st_mtime_ns for number in numbers for path in folder.glob(f"shard-{number}-of-*.array_record")
    }
    assert len(kept) == len(numbers) >= 7
    assert command_runs.run("prepare", *arguments, "--output", folder, "--workers", 2, folder=tmp_path).code == 0
    assert content_of(folder) == content_of(reference)
    assert all(path.stat().st_mtime_ns == written for path, written in kept.items())


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_preparing_that_is_killed_at_many_points_writes_the_same(arguments, reference, tmp_path) -> None:
    chance = random.Random(0)
    output = tmp_path / "printed"
    kills = runs = 0
    while kills < 30:
        runs += 1
        folder = tmp_path / f"out_{runs}"
        while True:
            done = count(folder, "progress/shard-*.json") + count(folder, "progress/examined-*.json")
            more = chance.randint(0, 6)
            ready = lambda wanted=done + more, folder=folder: (  # noqa: E731
                count(folder, "progress/shard-*.json") + count(folder, "progress/examined-*.json") >= wanted
            )
            if not kill_when(ready, arguments, folder, output, chance.uniform(0, 0.2)):
                break
            kills += 1
        assert content_of(folder) == content_of(reference)


def test_a_kill_between_the_last_shard_and_the_manifest_or_after_it_is_made_good(
    arguments, reference, tmp_path, capfd
) -> None:
    """The states that such a kill leaves are made by hand: their time is too short to be hit."""
    folder = tmp_path / "out"
    shutil.copytree(reference, folder)
    (folder / "progress").mkdir()
    (folder / "progress" / "shard-00000.json").write_text("{}")
    (folder / "manifest.json.tmp").write_text("{")
    assert command_runs.call("prepare", *arguments, "--output", folder) == 0
    assert "is prepared already: 350 documents" in capfd.readouterr().out
    assert content_of(folder) == content_of(reference)


def test_a_signal_keeps_what_is_whole(arguments, reference, tmp_path) -> None:
    folder, output = tmp_path / "out", tmp_path / "printed"
    with command_runs.started("prepare", *arguments, "--output", folder, "--workers", 2, output=output) as process:
        while process.poll() is None and not count(folder, "progress/shard-*.json"):
            time.sleep(0.005)
        process.send_signal(signal.SIGTERM)
        result = command_runs.ended(process, output)
    assert result.code == 75
    assert result.errors.splitlines() == [
        "saving; again ends at once",
        "interrupted: finished shards are kept; run the same command to resume",
    ]
    assert 1 <= count(folder, "progress/shard-*.json") < SHARDS
    assert not list(folder.glob("*.tmp"))
    assert command_runs.call("prepare", *arguments, "--output", folder, "--workers", 0) == 0
    assert content_of(folder) == content_of(reference)


BEAM = ("--runner", "beam", "--workers", 2)


@pytest.mark.slow
def test_beam_writes_what_one_thread_writes(arguments, reference, tmp_path) -> None:
    pytest.importorskip("apache_beam")
    result = command_runs.run("prepare", *arguments, *BEAM, "--output", tmp_path / "out", folder=tmp_path)
    assert result.code == 0
    assert "apache_beam" not in result.output + result.errors
    assert content_of(tmp_path / "out") == content_of(reference)


@pytest.mark.slow
def test_a_signal_ends_beam_and_keeps_what_is_whole(arguments, reference, tmp_path) -> None:
    pytest.importorskip("apache_beam")
    folder, output = tmp_path / "out", tmp_path / "printed"
    with command_runs.started("prepare", *arguments, *BEAM, "--output", folder, output=output) as process:
        while process.poll() is None and not count(folder, "progress/examined-*.json"):
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        result = command_runs.ended(process, output)
    assert result.code == 75
    assert result.errors.splitlines()[-1] == "interrupted: finished shards are kept; run the same command to resume"
    assert not list(folder.glob("*.tmp"))
    assert command_runs.call("prepare", *arguments, "--output", folder, "--workers", 0) == 0
    assert content_of(folder) == content_of(reference)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--beam.region", "europe-west4"), "--beam.region: needs --runner beam"),
        (("--runner", "beam", "--beam.projct", "p"), "--beam.projct: Apache Beam has no such option"),
        (("--runner", "beams"), '--runner: got "beams", expected one of local, beam'),
    ],
)
def test_mistakes_about_who_does_the_work_are_named(options, message, tmp_path, capfd) -> None:
    pytest.importorskip("apache_beam")
    assert command_runs.call("prepare", *options, "--output", tmp_path / "out") == 2
    error = capfd.readouterr().err
    assert error.startswith(f"error: {message}")
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--deduplicate", "false"), "deduplicate was true when it was begun and is false now"),
        (("--minimum_characters", 7), "minimum_characters was 6 when it was begun and is 7 now"),
        (("--data.tokenizer", None), 'tokenizer was "given" when it was begun and is "trained, 2048 pieces" now'),
        (("--data.source", "pydoc"), "the documents are not those it was begun with"),
    ],
    ids=["deduplicate", "cleaning", "tokenizer", "source"],
)
def test_other_settings_are_refused(arguments, reference, tmp_path, capfd, change, message) -> None:
    shutil.copytree(reference, tmp_path / "out")
    name, value = change
    place = arguments.index(name)
    changed = arguments[:place] + ([name, value] if value is not None else []) + arguments[place + 2 :]
    assert command_runs.call("prepare", *changed, "--output", tmp_path / "out") == 2
    error = capfd.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert content_of(tmp_path / "out") == content_of(reference)


@pytest.mark.slow
def test_another_tokenizer_is_refused(arguments, reference, tmp_path, capfd) -> None:
    other = tmp_path / "other.model"
    assert command_runs.call("tokenizer", "--data.source", "pydoc", "--vocab_size", 401, "--output", other) == 0
    shutil.copytree(reference, tmp_path / "out")
    changed = [*arguments, "--data.tokenizer", other, "--output", tmp_path / "out"]
    assert command_runs.call("prepare", *changed) == 2
    assert f"was begun with a different tokenizer than {other}" in capfd.readouterr().err


def test_what_an_earlier_version_has_begun_is_made_again(tmp_path, capfd) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one text"}\n{"text": "two texts"}\n')
    options = ("--data.source", tmp_path / "a.jsonl", "--vocab_size", 268, "--workers", 0, "--output")
    assert command_runs.call("prepare", *options, tmp_path / "new") == 0
    manifest = json.loads((tmp_path / "new" / "manifest.json").read_text())
    folder = tmp_path / "old" / "progress"
    folder.mkdir(parents=True)
    plan = {name: manifest[name] for name in ("source", "tokenizer", "settings")} | {"bounds": [0, 2]}
    (folder / "plan.json").write_text(json.dumps(plan))
    old = {"shard": manifest["shards"][0], "dropped": []}  # which did not know what rules find
    (folder / "shard-00000.json").write_text(json.dumps(old))
    assert command_runs.call("prepare", *options, tmp_path / "old") == 0
    assert "was begun by another version of this command" in capfd.readouterr().out
    assert content_of(tmp_path / "old") == content_of(tmp_path / "new")


def test_nothing_stays_where_searches_leave_nothing(tmp_path, capfd) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "said twice\\nsaid twice"}\n')
    options = ("--data.source", tmp_path / "a.jsonl", "--vocab_size", 268, "--workers", 0, "--paragraphs", "source")
    out = tmp_path / "made" / "out"
    assert command_runs.call("prepare", *options, "--minimum_characters", 12, "--output", out) == 2
    assert capfd.readouterr().err.endswith("no document is left: 1 too_short\n")
    assert not out.parent.exists()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_record_fails_where_that_is_asked_for(arguments, corpus, tmp_path, capfd, workers) -> None:
    ask = (*arguments, "--output", tmp_path / "out", "--data.bad_records", "fail", "--workers", workers)
    assert command_runs.call("prepare", *ask) == 2
    error = capfd.readouterr().err
    assert any(f"{corpus}:{number + 1}: " in error for number in BAD)
    assert "data.bad_records" in error
    assert len(error.splitlines()) == 1


def test_too_many_bad_records_end_the_work(arguments, corpus, tmp_path, capfd) -> None:
    ask = (*arguments, "--output", tmp_path / "out", "--workers", 0, "--data.max_bad_fraction")
    assert command_runs.call("prepare", *ask, 3 / 360) == 2
    error = capfd.readouterr().err
    assert error == (
        f"error: data.max_bad_fraction: 4 of 360 documents of {corpus} cannot be used (2 not_json, 1 missing_field, "
        f"1 empty), more than {3 / 360:g} of them; such as {corpus}:11: no field 'text' (data.text_field); it has "
        "body; repair the source, or allow more\n"
    )
    # The last shard was the one too many: nothing is left to examine but to refuse again.
    assert count(tmp_path / "out", "progress/examined-*.json") == SHARDS
    assert command_runs.call("prepare", *ask, 3 / 360) == 2
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert command_runs.call("prepare", *ask, 4 / 360) == 0


def test_a_directory_of_something_else_is_left_alone(arguments, tmp_path, capfd) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    assert command_runs.call("prepare", *arguments, "--output", tmp_path) == 2
    assert "holds thesis.txt and is not a prepared directory" in capfd.readouterr().err
    assert content_of(tmp_path) == {"thesis.txt": b"mine"}


@pytest.fixture
def words(tmp_path, monkeypatch) -> tuple[object, ...]:
    """Arguments to prepare a few documents below `body`."""
    monkeypatch.chdir(tmp_path)
    Path("words.jsonl").write_text("".join(json.dumps({"body": f"{text} or so"}) + "\n" for text in TEXTS[:8]))
    return ("prepare", "--data.source", "words.jsonl", "--vocab_size", 300, "--output", "new/out", "--workers", 0)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ((), ("--data.text_field", "body")),  # no record has the field: all are bad
        (("--data.bad_records", "fail"), ("--data.text_field", "body")),
        (("--data.text_field", "body", "--minimum_characters", 10_000), ("--data.text_field", "body")),
        (("--data.text_field", "body", "--vocab_size", 10_000), ("--data.text_field", "body")),
    ],
    ids=["all records are bad", "the first record is bad", "no document is left", "a vocabulary too large"],
)
def test_an_attempt_that_came_to_nothing_leaves_nothing(words, wrong, right, tmp_path, capfd) -> None:
    assert command_runs.call(*words, *wrong) == 2
    assert len(capfd.readouterr().err.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["words.jsonl"]
    Path("new/out").mkdir(parents=True)
    assert command_runs.call(*words, *wrong) == 2
    assert list(Path("new/out").iterdir()) == []  # a folder that was there stays
    assert command_runs.call(*words, *right) == 0
    assert open_prepared(Path("new/out").resolve()).manifest.documents == 8


def test_what_was_killed_before_its_first_document_binds_nobody(words, capfd) -> None:
    """What such a kill leaves is made by hand: a plan and a tokenizer of the other command."""
    assert command_runs.call(*words, "--data.text_field", "body", "--minimum_characters", 3) == 0
    written = Path("new/out")
    plan = json.loads((written / "manifest.json").read_text())
    for name in ("manifest.json", "dropped.jsonl"):
        (written / name).unlink()
    (written / "progress").mkdir()
    kept = {"source": plan["source"], "tokenizer": plan["tokenizer"], "settings": plan["settings"], "bounds": [0, 8]}
    (written / "progress" / "plan.json").write_text(json.dumps(kept))
    shard = {"documents": 0}
    (written / "progress" / "shard-00000.json").write_text(json.dumps({"shard": shard, "dropped": []}))
    (written / "tokenizer_config.json").write_text("{}")
    assert command_runs.call(*words, "--data.text_field", "body", "--vocab_size", 310) == 0
    names = {"tokenizer.model", "manifest.json", "dropped.jsonl", "shard-00000-of-00001.array_record"}
    assert {path.name for path in written.iterdir()} == names | {"report.json", "report.html"}
    assert open_prepared(written.resolve()).manifest.vocab_size == 310


@pytest.mark.slow
def test_two_at_a_time_are_refused(arguments, tmp_path) -> None:
    folder, output = tmp_path / "out", tmp_path / "printed"
    with command_runs.started("prepare", *arguments, "--output", folder, output=output) as process:
        while process.poll() is None and not count(folder, "progress/examined-*.json"):
            time.sleep(0.005)
        process.send_signal(signal.SIGSTOP)
        second = command_runs.run("prepare", *arguments, "--output", folder, folder=tmp_path)
    assert second.code == 2
    assert f"--output {folder}: in use by process" in second.errors


def test_prepared_shards_and_mixtures_are_not_prepared_again(reference, tmp_path, capfd) -> None:
    assert command_runs.call("prepare", "--data.source", reference, "--output", tmp_path / "out") == 2
    assert "it has been prepared already" in capfd.readouterr().err
    mixture = json.dumps([["pydoc", 1.0]])
    assert command_runs.call("prepare", "--data.mixture", mixture, "--output", tmp_path / "out") == 2
    assert "prepare takes one source" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_without_arguments_it_prepares_the_documentation_of_python(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert command_runs.call("prepare") == 0
    documents = open_prepared(tmp_path / "prepared")
    tokenizer = load_tokenizer(tmp_path / "prepared")
    assert tokenizer.vocab_size == documents.manifest.vocab_size == 2048
    assert documents[0][0] == tokenizer.bos_id
    assert documents[0][-1] == tokenizer.eos_id
    assert "assert" in tokenizer.decode(documents[0].tolist())


@pytest.fixture
def bucket() -> Iterator[epath.Path]:
    """A bucket, which has no rename and no append."""
    with object_store() as root:
        yield epath.Path(root)


def test_object_storage_gets_what_a_disk_gets(arguments, reference, bucket, capfd) -> None:
    command = ("prepare", *arguments, "--output", bucket / "prepared", "--workers", 0)
    assert command_runs.call(*command) == 0
    assert {path.name: path.read_bytes() for path in (bucket / "prepared").iterdir()} == content_of(reference)
    assert command_runs.call(*command) == 0
    assert "is prepared already" in capfd.readouterr().out


@pytest.mark.slow
def test_from_a_bucket_to_a_bucket_what_repeats_is_found_as_on_a_disk(arguments, corpus, bucket, tmp_path) -> None:
    searches = ("--near_duplicates.threshold", 0.8, "--paragraphs", "source", "--workers", 0)
    assert command_runs.call("prepare", *arguments, *searches, "--output", tmp_path / "out") == 0
    put("bucket/corpus.jsonl", corpus.read_bytes())
    source = ("--data.source", bucket / "corpus.jsonl")
    assert command_runs.call("prepare", *arguments, *searches, *source, "--output", bucket / "out") == 0
    shards = [path.name for path in tmp_path.glob("out/*.array_record")]
    assert len(shards) == SHARDS
    for name in shards:
        assert (bucket / "out" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    assert not (bucket / "out" / "progress").exists()
