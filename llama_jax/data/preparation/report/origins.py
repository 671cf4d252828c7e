"""Which part of a corpus a document is from: the folder or file below its root, which is what its sources are."""

from bisect import bisect_right
from collections import Counter
from typing import NamedTuple

from llama_jax.data.sources.documents import Documents
from llama_jax.data.sources.opening import FileDocuments

OTHERS = "others"
MOST_ORIGINS = 50


class Origins(NamedTuple):
    """The parts of a corpus, in the order of its documents; one that comes again is there again."""

    starts: list[int]
    """Number of the first document of each."""
    names: list[str]

    def of(self, document: int) -> str:
        """The name of the part that holds a document."""
        return self.names[bisect_right(self.starts, document) - 1]


def origins_of(documents: Documents, name: str) -> Origins:
    """The parts of a corpus: the first folder of each file's path below the root, or the file itself where it is in
    none. Beyond 50, the smallest by number of documents are `others`.

    Args:
        name: Of the whole, for documents that are not of files.
    """
    if not isinstance(documents, FileDocuments):
        return Origins([0], [name])
    # A name that is not valid UTF-8 must not end the work in its last step.
    files = [(each.split("/")[0].encode(errors="replace").decode(), count) for each, count in documents.named_parts()]
    sizes: Counter[str] = Counter()
    for part, count in files:
        sizes[part] += count
    largest = set(sorted(sizes, key=lambda part: (-sizes[part], part))[:MOST_ORIGINS])
    starts, names, start = [0], [files[0][0] if files[0][0] in largest else OTHERS], 0
    for part, count in files:
        shown = part if part in largest else OTHERS
        if shown != names[-1]:
            starts.append(start)
            names.append(shown)
        start += count
    return Origins(starts, names)
