import pickle
import sys

import pytest

from llama_jax.core.errors import UserError
from llama_jax.data.sources.documents import BadRecordError
from llama_jax.data.sources.opening import open_source

BUILDER = """
import numpy as np
import tensorflow_datasets as tfds


class Builder(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {"text": tfds.features.Text(), "n": np.int32, "words": tfds.features.Sequence(tfds.features.Text())}
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(50), "bad": self._generate_bad_examples()}

    def _generate_examples(self, count):
        for n in range(count):
            yield n, {"text": f"text \\u00e9 {n}", "n": n, "words": ["a"]}

    def _generate_bad_examples(self):
        for n, text in enumerate(["", " ", b"\\xff", "a\\0b"]):
            yield n, {"text": text, "n": n, "words": []}
"""


@pytest.fixture(scope="module", params=["array_record", "parquet"])
def tfds_directory(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp("tfds")
    package = directory / f"short_texts_{request.param}"  # a builder must live in a module that can be imported
    package.mkdir()
    (package / "__init__.py").touch()
    (package / f"{package.name}_dataset_builder.py").write_text(BUILDER)
    sys.path.insert(0, str(directory))
    try:
        module = __import__(f"{package.name}.{package.name}_dataset_builder", fromlist=["Builder"])
        module.Builder(data_dir=directory / "data", file_format=request.param).download_and_prepare()
    finally:
        sys.path.remove(str(directory))
    return directory / "data" / package.name / "1.0.0"


def texts(spec: str) -> list[str]:
    documents = open_source(spec)
    return [documents[index] for index in range(len(documents))]


def test_a_data_set_of_tfds_gives_each_text_once_without_tensorflow(tfds_directory):
    assert sorted(texts(f"tfds:{tfds_directory}")) == sorted(f"text é {n}" for n in range(50))
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize("part", ["[:10%]", "[45:]", "[:2]+train[20:22]", "[10%:90%]"])
def test_a_part_of_a_split_is_that_part(tfds_directory, part):
    everything = texts(f"tfds:{tfds_directory}:train")
    expected = {
        "[:10%]": everything[:5],
        "[45:]": everything[45:],
        "[:2]+train[20:22]": everything[:2] + everything[20:22],
        "[10%:90%]": everything[5:45],
    }
    assert texts(f"tfds:{tfds_directory}:train{part}") == expected[part]


def test_bad_examples_are_named(tfds_directory):
    documents = open_source(f"tfds:{tfds_directory}:bad")
    reasons = []
    for index in range(len(documents)):
        with pytest.raises(BadRecordError, match=rf"^tfds:short_texts_\w+/1.0.0:bad example {index}: ") as caught:
            documents[index]
        reasons.append(caught.value.reason)
    assert sorted(reasons) == ["empty", "empty", "not_utf8", "nul"]


@pytest.mark.parametrize(
    ("split", "field", "message"),
    [
        (":test", "text", "Unknown split 'test'. Should be one of"),
        (":train[:x%]", "text", "Error parsing split"),
        ("", "txt", r"no field 'txt' \(data.text_field\); it has .*did you mean 'text'"),
        ("", "n", r"field 'n' \(data.text_field\) is not a feature of text"),
        ("", "words", r"field 'words' \(data.text_field\) is not a feature of text"),
        ("/..", "text", "no dataset_info.json in .*; name the directory of one version"),
    ],
)
def test_what_a_data_set_does_not_have_is_refused_in_one_line(tfds_directory, split, field, message):
    with pytest.raises(UserError, match=f"^data.source: tfds:.*: {message}") as error:
        open_source(f"tfds:{tfds_directory}{split}", field)
    assert "\n" not in str(error.value)


def test_a_directory_of_tfds_says_how_it_is_named(tfds_directory):
    with pytest.raises(UserError, match=f"write tfds:{tfds_directory}"):
        open_source(str(tfds_directory))


@pytest.mark.parametrize("spec", ["tfds:", "tfds::train", "tfds:no_such_data_set", "hf:", "hf::train"])
def test_names_that_are_none_are_refused_in_one_line(spec):
    if spec.startswith("hf:"):
        pytest.importorskip("datasets")
    with pytest.raises(UserError, match=f"^data.source: {spec}: ") as error:
        open_source(spec)
    assert "\n" not in str(error.value)


def test_identity_of_a_data_set_follows_split_and_field(tfds_directory):
    splits = [f"tfds:{tfds_directory}{split}" for split in ("", ":train[:10%]", ":train[5:]", ":bad")]
    assert len({open_source(split).identity() for split in splits}) == 4
    assert open_source(splits[0]).identity() == open_source(f"{splits[0]}:train").identity()


def test_documents_of_a_data_set_can_be_sent_to_another_process(tfds_directory):
    documents = open_source(f"tfds:{tfds_directory}")
    sent = pickle.loads(pickle.dumps(documents))
    assert (sent[7], sent.identity()) == (documents[7], documents.identity())


@pytest.fixture(scope="module")
def hugging_face_directory(tmp_path_factory):
    datasets = pytest.importorskip("datasets")
    directory = tmp_path_factory.mktemp("hf")
    rows = datasets.Dataset.from_dict({"text": ["one", None, "", "four"], "n": [1, 2, 3, 4]})
    rows.save_to_disk(directory / "rows")
    datasets.DatasetDict({"train": rows, "test": rows.select([3])}).save_to_disk(directory / "splits")
    (directory / "lines").mkdir()
    (directory / "lines" / "a.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    return directory


@pytest.mark.parametrize(
    ("spec", "count", "first"),
    [("rows", 4, "one"), ("splits", 4, "one"), ("splits:test", 1, "four"), ("lines:train[1:]", 1, "b")],
)
def test_a_directory_of_hugging_face_is_read(hugging_face_directory, tmp_path, monkeypatch, spec, count, first):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    documents = open_source(f"hf:{hugging_face_directory}/{spec}")
    assert (len(documents), documents[0]) == (count, first)
    sent = pickle.loads(pickle.dumps(documents))
    assert (sent[0], sent.identity()) == (first, documents.identity())


def test_bad_rows_of_hugging_face_are_named(hugging_face_directory):
    documents = open_source(f"hf:{hugging_face_directory}/rows")
    for index, reason in ((1, "null_field"), (2, "empty")):
        with pytest.raises(BadRecordError, match=f"^hf:rows:train example {index}: ") as caught:
            documents[index]
        assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("spec", "field", "message"),
    [
        ("splits:valid", "text", "no split 'valid'; it has train, test"),
        ("rows", "txt", r"no field 'txt' \(data.text_field\); it has text, n; did you mean 'text'"),
        ("rows", "n", r"column 'n' \(data.text_field\) is of type int64, not strings"),
        ("gone", "text", "Couldn't find any data file at"),
    ],
)
def test_what_a_directory_of_hugging_face_does_not_have_is_refused(hugging_face_directory, spec, field, message):
    with pytest.raises(UserError, match=f"^data.source: hf:.*: {message}"):
        open_source(f"hf:{hugging_face_directory}/{spec}", field)
