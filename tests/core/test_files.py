"""Text files that survive kills, full disks and file systems that cannot append."""

import resource

import pytest
from etils import epath

from llama_jax.core.files import GrowingFile, is_remote, write_whole


def test_only_object_storage_is_remote(tmp_path):
    assert is_remote("gs://bucket/run")
    assert is_remote(epath.Path("gs://bucket/run"))
    assert not is_remote(tmp_path)
    assert not is_remote("runs/gs:/x")


def test_a_whole_file_replaces_the_old_one_and_leaves_nothing_else(tmp_path):
    write_whole(epath.Path(tmp_path / "file"), "old, and longer")
    write_whole(epath.Path(tmp_path / "file"), b"new")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("file", "new")]


def test_lines_are_on_disk_as_soon_as_they_are_written(tmp_path):
    file = GrowingFile(tmp_path / "log")
    file.write("é")
    assert (tmp_path / "log").read_text() == "é\n"
    file.close()


def test_opening_drops_half_a_line_and_those_not_kept(tmp_path):
    (tmp_path / "log").write_bytes(b"a\nb\n\xff\nc")
    file = GrowingFile(tmp_path / "log", keep=lambda line: line != "b\n")
    file.write("d")
    file.close()
    assert (tmp_path / "log").read_bytes() == b"a\n\xff\nd\n"


def test_a_full_disk_loses_no_line_and_leaves_no_half_line(tmp_path):
    file = GrowingFile(tmp_path / "log")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    file.write("0123456789")
    resource.setrlimit(resource.RLIMIT_FSIZE, (15, hard))
    try:
        file.write("abcdefghij")
        during = (tmp_path / "log").read_text()
        file.write("klm")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert during == "0123456789\n"
    file.write("end")
    file.close()
    assert (tmp_path / "log").read_text() == "0123456789\nabcdefghij\nklm\nend\n"


def test_lines_that_never_could_be_written_are_reported(tmp_path, capsys):
    file = GrowingFile(tmp_path / "gone" / "log", rewrite_seconds=0.0)
    file.write("a")
    file.write("b")
    file.close()
    assert capsys.readouterr().err == f"{tmp_path}/gone/log: the last 4 bytes could not be written\n"


@pytest.mark.parametrize(("seconds", "early"), [(0.0, "old\na\n"), (1000.0, "old\n")])
def test_a_file_that_cannot_append_is_rewritten_now_and_then(tmp_path, seconds, early):
    path = tmp_path / "log"
    path.write_text("old\n")
    file = GrowingFile(path, rewrite_seconds=seconds)
    file.write("a")
    assert path.read_text() == early
    file.write("b")
    file.close()
    assert path.read_text() == "old\na\nb\n"
