"""The part of the diagnosis that needs JAX, in a process of its own: a broken installation may end or halt it without
harm to the report. Sends what it finds, piece by piece, over a pipe."""

import contextlib
import dataclasses
import json
import logging
import sys
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from llama_jax.core.errors import UserError
from llama_jax.diagnosis.config import DoctorConfig
from llama_jax.diagnosis.environment import Devices, Host


class Request(NamedTuple):
    """What to look at."""

    host: Host
    """This machine."""
    config: DoctorConfig


class Message(NamedTuple):
    """What the probe sends to the process that started it."""

    what: str
    """`stage`: what comes next; `mistake`: of the user, in one line; `failed`: a stage, and why; `pod`: this is one of
    several hosts; else a part of the report."""
    value: Any


STARTING = "starting JAX"
_MEMORY = 256 * 2**20, 2**30
_MATRIX = 1024, 8192
_PAYLOAD = 4 * 2**20, 256 * 2**20
"""Bytes of an array, rows of a matrix, and bytes that are exchanged: on CPU, and on accelerators, which take no time
worth measuring for less."""
_PARTS = {"matmul": 0.35, "memory": 0.3}
"""Of the seconds: those of each of the two types, and those of memory."""


def main() -> None:
    """Entry point of that process; the pipe's file descriptor is its argument."""
    connection = Connection(int(sys.argv[1]))
    request: Request = connection.recv()
    probe = _Probe(request, lambda what, value: connection.send(Message(what, value)))
    try:
        probe.run()
    except UserError as error:
        probe.tell("mistake", str(error))
    probe.tell("end", None)
    connection.close()


class _Probe:
    def __init__(self, request: Request, tell: Callable[[str, Any], None]) -> None:
        self._host, self._config = request
        self.tell = tell
        self._complaints = _Complaints()

    def run(self) -> None:
        # Before JAX is imported: it says once, in its log, why a plugin does not come up.
        logging.getLogger("jax._src.xla_bridge").addHandler(self._complaints)
        if not self._try(STARTING, self._start):
            return
        self._try("comparing the hosts", self._compare)
        self._try("choosing implementations", self._choose)
        for dtype in ("bfloat16", "float32"):
            self._try(f"multiplying {dtype} matrices", lambda dtype=dtype: self._multiply(dtype))
        self._try("reading and writing memory", self._read)
        self._check_numbers()
        self._exchange()

    def _try(self, stage: str, work: Callable[[], None]) -> bool:
        self.tell("stage", stage)
        try:
            work()
        except UserError:
            raise
        except Exception as error:
            traceback.print_exc()
            complaints = self._complaints.lines if stage == STARTING else []
            self.tell("failed", {"stage": stage, "why": "; ".join([in_one_line(error), *complaints])})
            return False
        return True

    def _start(self) -> None:
        from llama_jax.core.processes.distributed import in_tpu_pod, start_up

        if in_tpu_pod():
            self.tell("pod", True)
        start_up(self._config.distributed)
        import jax
        from jax._src import distributed, xla_bridge  # neither the client nor the errors have a public name

        from llama_jax.core.mesh import make_mesh, platform

        devices = jax.devices()
        self._mesh = make_mesh(self._config.mesh)
        self._platform = platform()
        memory = jax.local_devices()[0].memory_stats() or {}
        refused = getattr(xla_bridge, "_backend_errors", {})
        errors = [*self._complaints.lines, *map(in_one_line, refused.values())]
        cache, cache_bytes = _cache()
        found = Devices(
            platform=self._platform,
            kind=devices[0].device_kind,
            count=len(devices),
            processes=jax.process_count(),
            process=jax.process_index(),
            memory_bytes=memory.get("bytes_limit"),
            joined=distributed.global_state.client is not None,
            backend_errors=tuple(dict.fromkeys(errors)),
            cache=cache,
            cache_bytes=cache_bytes,
        )
        self.tell("devices", found)
        self._accelerated = self._platform != "cpu"

    def _compare(self) -> None:
        self.tell("hosts", self._from_all(dataclasses.asdict(self._host)))

    def _from_all(self, value: Any) -> list[Any]:
        """What each process has given."""
        from llama_jax.core.processes.distributed import gathered

        return [json.loads(content) for content in gathered(json.dumps(value).encode())]

    def _choose(self) -> None:
        import jax

        from llama_jax.core import sharding
        from llama_jax.model.attention.choice import Shapes, choose
        from llama_jax.model.config import ComputeConfig, sized
        from llama_jax.objectives.cross_entropy import chunk_bytes, chunk_count

        config, length = sized(self._config.size).architecture, self._config.sequence_length
        with jax.set_mesh(self._mesh):
            rows = sharding.size_of("batch")
            shapes = Shapes.of_whole_rows(config, ComputeConfig(dtype="bfloat16"), rows, length)
            attention = choose("auto", shapes)
            on_a_device = -(-length // sharding.size_of("length"))
            chunks, most = chunk_count(1, on_a_device, config.padded_vocab_size), chunk_bytes()
        loss = f"cross-entropy in {chunks} chunks of {on_a_device // chunks:,} tokens, logits of one at a time"
        self.tell(
            "choices",
            {
                "model": self._config.size,
                "sequence_length": length,
                "rows": rows,
                "attention": attention.name,
                "attention_reason": attention.reason,
                "loss": loss,
                "loss_chunks": chunks,
                "loss_chunk_bytes": most,
            },
        )

    def _multiply(self, dtype: str) -> None:
        from llama_jax.diagnosis.measuring import matmul_rate, wrong_products

        if wrong := wrong_products(dtype):
            self.tell("wrong", wrong)
        rate = matmul_rate(dtype, _MATRIX[self._accelerated], self._config.seconds * _PARTS["matmul"])
        chip = self._chip()
        peak = chip.flops if chip is not None and dtype == "bfloat16" else None
        self.tell(f"matmul_{dtype}", rate._replace(peak=peak)._asdict())

    def _read(self) -> None:
        from llama_jax.diagnosis.measuring import memory_rate

        available = self._host.available_bytes
        size = _MEMORY[self._accelerated]
        if not self._accelerated and available is not None:
            size = min(size, available // 8)
        rate = memory_rate(size, self._config.seconds * _PARTS["memory"])
        chip = self._chip()
        peak = None if chip is None else chip.memory_bandwidth
        self.tell("memory_bandwidth", rate._replace(peak=peak)._asdict())

    def _check_numbers(self) -> None:
        import jax

        from llama_jax.core.config import MeshConfig
        from llama_jax.core.mesh import make_mesh
        from llama_jax.diagnosis.numbers import Check, checks, worst

        def looked_at(check: Check) -> None:
            try:
                with jax.set_mesh(alone):
                    found = check.found()
            except Exception as error:
                traceback.print_exc()
                found = check.failed(in_one_line(error))
            self.tell("number", worst(self._from_all(found)))

        # One device of each process.
        alone = make_mesh(MeshConfig(), jax.local_devices()[:1])
        with jax.set_mesh(alone):
            wanted = checks(self._config.thorough)
        for check in wanted:
            self._try(f"checking {check.what}", lambda check=check: looked_at(check))

    def _chip(self) -> Any:
        import jax

        from llama_jax.core.chips import CHIPS

        return CHIPS.get(jax.devices()[0].device_kind)

    def _exchange(self) -> None:
        from llama_jax.diagnosis.collective_check import COLLECTIVES, check, groups

        payload = _PAYLOAD[self._accelerated]
        for axes in groups(self._mesh):
            for collective in COLLECTIVES:

                def work(axes: tuple[str, ...] = axes, collective: Any = collective) -> None:
                    checked = check(self._mesh, axes, collective, payload)
                    everywhere = self._from_all(checked._asdict())
                    problems = [each["problem"] for each in everywhere if each["problem"]]
                    slowest = min(each["bytes_per_second"] for each in everywhere)
                    seen_by_all = {"problem": "; ".join(problems), "bytes_per_second": slowest}
                    self.tell("collective", checked._asdict() | seen_by_all)

                self._try(f"{collective.name} along {' x '.join(axes)}", work)


class _Complaints(logging.Handler):
    """The errors that JAX logs while it looks for plugins."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        error: Any = record.exc_info[1] if record.exc_info else None
        self.lines.append(in_one_line(error or record.getMessage()))


def in_one_line(error: Any) -> str:
    """The type of an error and the beginning of what it says; of a text its beginning."""
    words = " ".join(str(error).split())
    said = words
    if isinstance(error, BaseException):
        said = f"{type(error).__name__}: {words}" if words else type(error).__name__
    return said if len(said) <= 240 else f"{said[:239]}…"


def _cache() -> tuple[Any, int | None]:
    """Where compiled programs are kept, and their bytes."""
    import jax

    from llama_jax.diagnosis.gathering import place

    settings: Mapping[str, Any] = jax.config.values
    folder = settings["jax_compilation_cache_dir"]
    if not folder or not settings["jax_enable_compilation_cache"]:
        return None, None
    if "://" in folder:
        return place(folder), None
    size = 0
    for file in Path(folder).glob("*"):
        with contextlib.suppress(OSError):  # another process clears the cache
            size += file.stat().st_size
    return place(folder), size
