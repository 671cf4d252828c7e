"""Samples in a file as they come in, so that the same evaluation resumes where it was stopped."""

import json
from collections.abc import Callable
from typing import Any

from etils import epath

from llama_jax.core.errors import UserError
from llama_jax.core.files import GrowingFile, write_whole
from llama_jax.core.processes.distributed import from_main_process, is_main_process
from llama_jax.evals.tasks import Sample


def output_file(output: str | None) -> epath.Path | None:
    """The file for the result of an evaluation.

    Raises:
        UserError: it is not a .json file, or its folder does not exist.
    """
    if output is None:
        return None
    file = epath.Path(output).expanduser()
    if file.suffix != ".json":
        raise UserError(f"--output {output}: must be a .json file")
    if not file.parent.is_dir():
        raise UserError(f"--output {output}: there is no folder {file.parent}")
    return file


class KeptSamples:
    """The samples of one evaluation, by number of the document.

    With an output `NAME.json` they are written to `NAME.json.partial.jsonl` one by one, and in the end, in the order of
    the documents, to `NAME.samples.jsonl`. Every process knows which documents are done; the main one writes.

    Args:
        output: the file for the result; None: samples are kept in memory alone.
        key: what the samples depend on. Those found under another key are of another evaluation and are dropped.
        say: told what is resumed or dropped.
    """

    def __init__(self, output: epath.Path | None, key: str, say: Callable[[str], None]) -> None:
        self.by_document: dict[int, Sample] = {}
        self._output = output
        self._file: GrowingFile | None = None
        if output is None:
            return
        partial = self._partial = output.with_name(f"{output.name}.partial.jsonl")
        lines = from_main_process(lambda: partial.read_bytes() if partial.exists() else b"").splitlines(keepends=True)
        opening = _line({"key": key})
        ours = bool(lines) and lines[0] == f"{opening}\n".encode()
        if lines and not ours:
            say(f"{partial}: belongs to another evaluation; starting over")
        for line in lines[1:] if ours else ():
            if line.endswith(b"\n"):  # a kill may leave half a line
                sample = json.loads(line)
                self.by_document[sample.pop("document")] = sample
        if self.by_document:
            say(f"{partial}: resuming after {len(self.by_document)} documents")
        if is_main_process():
            self._file = GrowingFile(partial, keep=lambda line: ours)
            if not ours:
                self._file.write(opening)

    def add(self, document: int, sample: Sample) -> None:
        """Keep the sample of a document."""
        self.by_document[document] = sample
        if self._file is not None:
            self._file.write(_line({"document": document} | sample))

    def close(self) -> None:
        """Write the samples in order, in place of the partial file."""
        if self._output is None or self._file is None:
            return
        self._file.close()
        lines = [_line({"document": number} | sample) for number, sample in sorted(self.by_document.items())]
        write_whole(self._output.with_name(f"{self._output.stem}.samples.jsonl"), "\n".join([*lines, ""]))
        self._partial.unlink()


def _line(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False)
