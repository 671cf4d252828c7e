#!/usr/bin/env bash
# tensorflow-datasets: slices such as train[:50%] of a data set in parquet return the whole split.
#
# Versions:  tensorflow-datasets 4.9.10, pyarrow 22.0.0, array-record 0.8.6, without TensorFlow.
# Behaviour: builder.as_data_source(split="train[:50%]") honours the slice where the data set was written as
#            array_record, and ignores it, without a warning, where it was written as parquet.
# Seen:      array_record: train 10, train[:50%] 5, train[50%:] 5; parquet: train 10, train[:50%] 10, train[50%:] 10
# Means:     train[:90%] and train[90%:] are the usual way to hold data out; from parquet, the model is evaluated on
#            what it was trained on. Slice the data source yourself, or write array_record.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tensorflow-datasets==4.9.10 pyarrow==22.0.0 array-record==0.8.6 \
  importlib_resources==7.1.0
cd "$folder"
cat >toy.py <<'PYTHON'
import tensorflow_datasets as tfds


class Toy(tfds.core.GeneratorBasedBuilder):
    """Ten short texts."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({"text": tfds.features.Text()}))

    def _split_generators(self, dl_manager):
        return {"train": ((number, {"text": f"text {number}"}) for number in range(10))}

    def _generate_examples(self):
        raise NotImplementedError
PYTHON
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import tensorflow_datasets as tfds
from toy import Toy

tfds.disable_progress_bar()

seen = {}
for file_format in ("array_record", "parquet"):
    builder = Toy(data_dir=f"data_{file_format}", file_format=file_format)
    builder.download_and_prepare()
    splits = ("train", "train[:50%]", "train[50%:]")
    seen[file_format] = [len(list(builder.as_data_source(split=split))) for split in splits]
    print(f"{file_format}:", ", ".join(f"{split} {rows}" for split, rows in zip(splits, seen[file_format])))
print("TensorFlow imported:", "tensorflow" in sys.modules)
assert seen == {"array_record": [10, 5, 5], "parquet": [10, 10, 10]}, "slices have changed"
PYTHON
