"""Documents that are as bad, as slow or as final as a test wants; processes of workers can import them."""

import os
import signal

import numpy as np

from llama_jax.core.errors import UserError
from llama_jax.data.sources.documents import BadRecordError


class ScriptedDocuments:
    """Texts, of which some are not: "bad:REASON" cannot be used, "gone" ends the run, "fail" is a fault of ours, "kill"
    takes the process with it."""

    def __init__(self, texts: list[str]) -> None:
        self._texts = texts

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, index: int) -> str:
        text = self._texts[index]
        if text.startswith("bad:"):
            raise BadRecordError(text[4:], f"a.jsonl:{index + 1}", f"is {text[4:]}")
        if text == "gone":
            raise UserError(f"a.jsonl: is gone at {index}")
        if text == "fail":
            raise ZeroDivisionError("two\nlines")
        if text == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        return text

    def identity(self) -> str:
        return f"scripted {self._texts}"


class IdDocuments:
    """Documents that are ids already."""

    def __init__(self, documents: list[list[int]]) -> None:
        self._documents = [np.array(ids, np.int32) for ids in documents]

    def __len__(self) -> int:
        return len(self._documents)

    def __getitem__(self, index: int) -> np.ndarray:
        return self._documents[index]

    def identity(self) -> str:
        return f"ids {len(self._documents)}"
