"""An evaluation that was stopped goes on with the samples it has; another one starts anew."""

import json

import pytest

from llama_jax.core.errors import UserError
from llama_jax.evals.kept_samples import KeptSamples, output_file


def test_samples_are_there_as_soon_as_they_are_known_and_in_order_at_the_end(tmp_path) -> None:
    output, partial, said = output_file(str(tmp_path / "a.json")), tmp_path / "a.json.partial.jsonl", []
    kept = KeptSamples(output, "key", said.append)
    kept.add(2, {"accuracy": 1})
    kept.add(0, {"accuracy": 0, "answer": "é"})
    assert len(partial.read_text().splitlines()) == 3
    partial.write_text(partial.read_text() + '{"document": 1, "accu')  # killed while it wrote
    again = KeptSamples(output, "key", said.append)
    assert again.by_document == {2: {"accuracy": 1}, 0: {"accuracy": 0, "answer": "é"}}
    assert said == [f"{partial}: resuming after 2 documents"]
    again.add(1, {"accuracy": 1})
    again.close()
    lines = (tmp_path / "a.samples.jsonl").read_text().splitlines()
    assert [json.loads(line)["document"] for line in lines] == [0, 1, 2]
    assert json.loads(lines[0])["answer"] == "é"
    assert not partial.exists()


def test_samples_of_another_evaluation_are_dropped(tmp_path) -> None:
    output, said = output_file(str(tmp_path / "a.json")), []
    KeptSamples(output, "key", said.append).add(0, {"accuracy": 1})
    other = KeptSamples(output, "other key", said.append)
    assert other.by_document == {}
    assert said == [f"{tmp_path / 'a.json.partial.jsonl'}: belongs to another evaluation; starting over"]
    other.add(5, {"accuracy": 0})
    assert list(KeptSamples(output, "other key", said.append).by_document) == [5]


def test_an_output_that_cannot_be_written_is_refused_at_once(tmp_path) -> None:
    with pytest.raises(UserError, match=r"--output x\.txt: must be a \.json file"):
        output_file("x.txt")
    with pytest.raises(UserError, match=r"there is no folder .*nowhere"):
        output_file(str(tmp_path / "nowhere" / "a.json"))
