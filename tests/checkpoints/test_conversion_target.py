"""What a conversion may replace, and that the old or the new is there whole."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from etils import epath

from llama_jax.checkpoints.conversion_target import REPORT, Target, find_target, written_files
from llama_jax.core.errors import UserError

MODEL = {"config.json": b"{}", "model.safetensors": b"old", "deep/er/part": b"x"}


def target_of(path: object, *, is_directory: bool = True, overwrite: bool = True) -> Target:
    return find_target(str(path), is_directory=is_directory, overwrite=overwrite)


def write(path: object, files: dict[str, bytes], *sources: object, is_directory: bool = True) -> Target:
    """What `convert` does with a target, for a model of these files."""
    target = target_of(path, is_directory=is_directory)
    target.clean_up()
    target.check([str(source) for source in sources])
    for name, content in files.items():
        (target.partial / name).parent.mkdir(parents=True, exist_ok=True)
        (target.partial / name).write_bytes(content)
    report = json.dumps({"files": written_files(target.partial)})
    (target.partial / target.report.name).write_text(report)
    target.place(target.partial, [str(source) for source in sources])
    return target


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_convert_wrote_is_replaced_and_nothing_is_left_of_it(tmp_path):
    write(tmp_path / "out", MODEL)
    write(tmp_path / "out", {"checkpoints/0/manifest.json": b"new"})
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert content_of(tmp_path / "out").keys() == {"checkpoints/0/manifest.json", REPORT}
    (tmp_path / "out" / "checkpoints" / "0" / "manifest.json").unlink()  # what is gone protects nothing
    write(tmp_path / "out", MODEL)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="exists; name another, or replace what convert wrote with --overwrite true"):
        target_of(tmp_path / "out", overwrite=False).check([])


FOREIGN: dict[str, tuple[Callable[[Path], object], str]] = {
    "a file beside": (lambda out: (out / "notes.txt").write_text("mine"), "for notes.txt is not of convert"),
    "a file below": (lambda out: (out / "deep" / "notes.txt").write_text("mine"), "for deep/notes.txt is not of"),
    "an edited file": (lambda out: (out / "config.json").write_bytes(b"[]"), "for config.json was changed since"),
    "a longer file": (lambda out: (out / "model.safetensors").write_bytes(b"older"), "for model.safetensors was"),
    "a link to nowhere": (lambda out: (out / "link").symlink_to("nowhere"), "for link is not of convert"),
    "no report": (lambda out: (out / REPORT).unlink(), f"convert did not write it .no {REPORT} lists its files"),
    "a report without files": (lambda out: (out / REPORT).write_text('{"target": "out"}'), "did not write it"),
    "a report that is none": (lambda out: (out / REPORT).write_text("[1]"), "did not write it"),
    "a run in its place": (lambda out: (shutil.rmtree(out), (out / "checkpoints" / "3").mkdir(parents=True)), "not wr"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_not_of_convert_is_left_as_it_is(tmp_path, name):
    write(tmp_path / "out", MODEL)
    change, message = FOREIGN[name]
    change(tmp_path / "out")
    before = content_of(tmp_path)
    with pytest.raises(UserError, match=f"--target {tmp_path}/out: is not replaced, for .*{message}|{message}"):
        write(tmp_path / "out", {"new": b"new"})
    assert content_of(tmp_path) == before


def test_what_is_read_is_never_replaced(tmp_path, monkeypatch):
    write(tmp_path / "a" / "out", MODEL)
    (tmp_path / "link").symlink_to(tmp_path / "a")
    monkeypatch.chdir(tmp_path / "a" / "out")
    before = content_of(tmp_path)
    for target, source in (
        (tmp_path / "a" / "out", tmp_path / "a" / "out"),
        (tmp_path / "a" / "out", tmp_path / "link" / "out"),
        (tmp_path / "link" / "out", tmp_path / "a" / "out" / "deep"),
        (tmp_path / "a" / "out", "."),
        (".", "config.json"),
        ("../..", "."),
        ("..", tmp_path / "link" / "out"),
    ):
        with pytest.raises(UserError, match=f"--target {target}: holds {source}, which is to be converted"):
            target_of(target).check([None, str(source)])
    assert content_of(tmp_path) == before
    write("inner", {"new": b""}, tmp_path / "a" / "out")  # within it there is room


def test_a_directory_does_not_take_the_place_of_a_file_nor_a_file_that_of_a_directory(tmp_path):
    write(tmp_path / "out", MODEL)
    write(tmp_path / "out.gguf", {"out.gguf": b"GGUF"}, is_directory=False)
    with pytest.raises(UserError, match="out: is a directory, and the format is a file"):
        target_of(tmp_path / "out", is_directory=False).check([])
    with pytest.raises(UserError, match="gguf: is a file, and the format is a directory"):
        target_of(tmp_path / "out.gguf").check([])


def test_two_files_in_one_folder_have_two_reports(tmp_path):
    for name in ("a.gguf", "b.gguf", "a.gguf"):
        write(tmp_path / name, {name: name.encode()}, is_directory=False)
    assert content_of(tmp_path).keys() == {"a.gguf", "b.gguf", f"a.gguf.{REPORT}", f"b.gguf.{REPORT}"}
    assert json.loads((tmp_path / f"b.gguf.{REPORT}").read_text())["files"].keys() == {"b.gguf"}
    (tmp_path / "a.gguf").write_bytes(b"of somebody else")
    with pytest.raises(UserError, match=r"for a\.gguf was changed since convert wrote it"):
        write(tmp_path / "a.gguf", {"a.gguf": b"new"}, is_directory=False)
    (tmp_path / "c.gguf").write_bytes(b"never of convert")
    with pytest.raises(UserError, match=f"no c.gguf.{REPORT} lists its files"):
        write(tmp_path / "c.gguf", {"c.gguf": b"new"}, is_directory=False)


def test_what_belongs_beside_a_file_takes_the_name_of_nothing_else(tmp_path):
    (tmp_path / "tokenizer.bin").write_bytes(b"of another model")
    before = content_of(tmp_path)
    with pytest.raises(UserError, match=r"needs the name .*/tokenizer\.bin, which is another file"):
        write(tmp_path / "a.bin", {"a.bin": b"1", "tokenizer.bin": b"its own"}, is_directory=False)
    shutil.rmtree(tmp_path / ".a.bin.partial")
    assert content_of(tmp_path) == before
    write(tmp_path / "a.bin", {"a.bin": b"1", "tokenizer.bin": b"of another model"}, is_directory=False)
    write(tmp_path / "a.bin", {"a.bin": b"2", "tokenizer.bin": b"its own"}, is_directory=False)
    assert (tmp_path / "tokenizer.bin").read_bytes() == b"its own"


def test_an_interrupted_replacement_leaves_the_old_or_the_new(tmp_path, monkeypatch):
    target = write(tmp_path / "out", MODEL)
    old = content_of(tmp_path / "out")

    class Killed(BaseException):
        pass

    rename = type(target.path).rename

    def interrupted(path, to):
        if path == target.partial:
            raise Killed
        return rename(path, to)

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(type(target.path), "rename", interrupted)
        write(tmp_path / "out", {"new": b"new"})
    assert content_of(tmp_path / "out") == old
    # Killed between the two: the next conversion to this target finds the old one again.
    (tmp_path / "out").rename(tmp_path / ".out.replaced")
    (tmp_path / ".out.partial").mkdir(exist_ok=True)
    target.clean_up()
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and content_of(tmp_path / "out") == old
    # Killed before the old one is removed.
    shutil.copytree(tmp_path / "out", tmp_path / ".out.replaced")
    target.clean_up()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert epath.Path(tmp_path / "out") == target.path
