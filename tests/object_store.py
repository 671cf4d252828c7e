"""A bucket in this process, as the libraries see one that checkpoints are written with: `gs://` of epath, through
fsspec, and of tensorstore, through HTTP. It has no rename, no append and no folders; its listings may be late."""

import contextlib
import io
import json
import os
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import fsspec
from etils.epath import backend
from fsspec import AbstractFileSystem

OBJECTS: dict[str, bytes] = {}
"""Contents by `bucket/key`."""
_GENERATIONS: dict[str, int] = {}
_LISTED: list[Callable[[str], bool] | frozenset[str]] = []


def listed() -> list[str]:
    """The names that a listing tells of."""
    names = set(OBJECTS)
    for late in _LISTED:
        names = set(late) if isinstance(late, frozenset) else {name for name in names if late(name)}
    return sorted(names)


@contextlib.contextmanager
def listings(late: Callable[[str], bool] | frozenset[str]) -> Iterator[None]:
    """Within, listings tell only of names for which this is true, or of exactly these, written since or removed."""
    _LISTED.append(late)
    try:
        yield
    finally:
        _LISTED.pop()


def put(name: str, content: bytes) -> None:
    OBJECTS[name] = content
    _GENERATIONS[name] = _GENERATIONS.get(name, 0) + 1


class _Upload(io.BytesIO):
    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def close(self) -> None:
        if not self.closed:
            put(self._name, self.getvalue())
        super().close()


class Bucket(AbstractFileSystem):
    """What fsspec is told of it."""

    protocol = ("gs", "gcs")
    cachable = False

    @classmethod
    def _strip_protocol(cls, path: Any) -> str:
        return str(path).removeprefix("gs://").removeprefix("gcs://").strip("/")

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        folder = self._strip_protocol(path)
        inside = [name.removeprefix(f"{folder}/") for name in listed() if name.startswith(f"{folder}/")]
        if not inside and folder not in OBJECTS:
            raise FileNotFoundError(path)
        kinds = {name.partition("/")[0]: "directory" if "/" in name else "file" for name in inside}
        entries = [{"name": f"{folder}/{name}", "type": kind, "size": 0} for name, kind in sorted(kinds.items())]
        return entries if detail else [entry["name"] for entry in entries]

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        name = self._strip_protocol(path)
        if name in OBJECTS:
            return {"name": name, "type": "file", "size": len(OBJECTS[name])}
        if any(other.startswith(f"{name}/") for other in listed()):
            return {"name": name, "type": "directory", "size": 0}
        raise FileNotFoundError(path)

    def _open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        name = self._strip_protocol(path)
        if mode == "wb":
            return _Upload(name)
        if mode != "rb":
            raise NotImplementedError(f"an object store has no mode {mode}")
        if name not in OBJECTS:
            raise FileNotFoundError(path)
        return io.BytesIO(OBJECTS[name])

    def rm(self, path: str, recursive: bool = False, maxdepth: int | None = None) -> None:
        name = self._strip_protocol(path)
        for inside in [other for other in listed() if recursive and other.startswith(f"{name}/")]:
            OBJECTS.pop(inside, None)
        if not recursive and OBJECTS.pop(name, None) is None:
            raise FileNotFoundError(path)

    def mkdir(self, path: str, create_parents: bool = True, **_: Any) -> None:
        """There are no folders."""

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """There are no folders."""

    def rmdir(self, path: str) -> None:
        """There are no folders."""

    def mv(self, path1: str, path2: str, **_: Any) -> None:
        raise NotImplementedError("an object store has no rename")

    rename = move = mv
    cp_file = mv


class _Requests(BaseHTTPRequestHandler):
    """The part of the JSON API of Google Cloud Storage that tensorstore uses."""

    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        del format, args

    def _asked(self) -> tuple[str, str, dict[str, str]]:
        url = urlsplit(self.path)
        bucket, _, key = url.path.partition("/b/")[2].partition("/o")
        return bucket, unquote(key.strip("/")), {key: values[0] for key, values in parse_qs(url.query).items()}

    def _answer(self, code: int, content: bytes = b"", **headers: str) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _describe(self, name: str) -> dict[str, str]:
        size = str(len(OBJECTS.get(name, b"")))
        return {"name": name.partition("/")[2], "size": size, "generation": str(_GENERATIONS.get(name, 1))}

    def do_GET(self) -> None:
        bucket, key, query = self._asked()
        if not key:
            start, end = query.get("startOffset", ""), query.get("endOffset")
            names = [name for name in listed() if name.startswith(f"{bucket}/{query.get('prefix', '')}")]
            found = [self._describe(name) for name in names if name in OBJECTS]
            found = [each for each in found if each["name"] >= start and (end is None or each["name"] < end)]
            return self._answer(200, json.dumps({"items": found}).encode())
        name = f"{bucket}/{key}"
        if name not in OBJECTS:
            return self._answer(404)
        generation = str(_GENERATIONS[name])
        if query.get("ifGenerationNotMatch") == generation:
            return self._answer(304)
        content, wanted = OBJECTS[name], self.headers.get("Range")
        headers = {"x_goog_generation": generation}
        if wanted is None:
            return self._answer(200, content, **headers)
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        start = int(first) if first else len(content) - int(last)
        end = min(int(last) + 1 if last and first else len(content), len(content))
        return self._answer(206, content[start:end], Content_Range=f"bytes {start}-{end - 1}/{len(content)}", **headers)

    def do_POST(self) -> None:
        bucket, _, query = self._asked()
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        name = f"{bucket}/{query['name']}"
        expected = query.get("ifGenerationMatch")
        if expected is not None and int(expected) != (_GENERATIONS[name] if name in OBJECTS else 0):
            return self._answer(412)
        put(name, content)
        return self._answer(200, json.dumps(self._describe(name)).encode())

    def do_DELETE(self) -> None:
        bucket, key, _ = self._asked()
        return self._answer(404 if OBJECTS.pop(f"{bucket}/{key}", None) is None else 204)


@contextlib.contextmanager
def object_store() -> Iterator[str]:
    """Within, `gs://` is this bucket; gives the address of its root."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Requests)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    os.environ["TENSORSTORE_GCS_HTTP_URL"] = f"http://127.0.0.1:{server.server_port}"
    os.environ["GOOGLE_AUTH_TOKEN_FOR_TESTING"] = "none"
    os.environ["EPATH_USE_TF"] = "false"
    fsspec.register_implementation("gs", Bucket, clobber=True)
    fsspec.register_implementation("gcs", Bucket, clobber=True)
    backend.fsspec_backend._get_filesystem.cache_clear()
    try:
        yield "gs://bucket"
    finally:
        server.shutdown()
        OBJECTS.clear()
