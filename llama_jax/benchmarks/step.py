"""`benchmark train` and `benchmark lora`: one training step as compiled, its time, its compilation and its memory, on
synthetic tokens."""

import contextlib
import functools
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

from llama_jax.benchmarks.config import BenchmarkConfig
from llama_jax.benchmarks.heaviest import profiled
from llama_jax.benchmarks.results import gigabytes, say
from llama_jax.benchmarks.turns import peak_host_bytes, summary, timed
from llama_jax.core import placing
from llama_jax.core.batches import Batch, TokenBatch
from llama_jax.data.rows.packing import write_segment
from llama_jax.model.flops import CONVENTION
from llama_jax.objectives.next_token import next_token
from llama_jax.runs.description import description
from llama_jax.runs.methods import all_parameters, build_program, low_rank_adapter
from llama_jax.training.program import Program


def build(config: BenchmarkConfig, devices: Sequence[Any] | None = None) -> Program:
    """The training step of `pretrain`, or of `lora` over a model of that architecture, on the given devices or on
    all."""
    run: Any = config
    method = all_parameters(run.training.trainable)
    if config.what == "lora":
        method = low_rank_adapter(config.lora, config.model_dtype, run.training.peak_learning_rate)
    objective = functools.partial(next_token, z_loss=run.training.z_loss)
    return build_program(run, method, objective, run.model.architecture, run.data.sequence_length, devices)


def measure_step(config: BenchmarkConfig) -> dict[str, Any]:
    """Speed, memory and compilation of the step."""
    program = build(config)
    say(config, description(program, config.run.model.size))
    with jax.set_mesh(program.mesh):
        step = MeasuredStep(program)
        step.turn(config.warmup_steps)
        result = step.report([timed(step.turn, config.steps_per_turn) for _ in range(config.turns)])
        if config.profile_steps:
            result["profile"] = step.profile(config.profile_steps)
    say(config, _described(result))
    return result


def _described(result: dict[str, Any]) -> str:
    seconds, memory, compilation = result["step_seconds"], result["memory"], result["compile_seconds"]
    utilization = result["model_flops_utilization"]
    mfu = "not known, no peak for this device" if utilization is None else f"{utilization:.1%}"
    speeds = result["tokens_per_second_by_turn"]
    device = memory["peak_device_bytes"]
    on_device = "" if device is None else f", fullest device {gigabytes(device)}"
    operations = [
        f"profile: {each['share']:6.1%} {each['seconds']:.4f} s, {each['calls']:,.0f} x {each['name']} {each['source']}"
        for each in result.get("profile", {"operations": ()})["operations"]
    ]
    return "\n".join(
        [
            f"speed:    {result['tokens_per_second']:,.0f} tokens/s (turns {min(speeds):,.0f}–{max(speeds):,.0f}, "
            f"noise ±{seconds['noise']:.1%}), {result['tokens_per_second_per_device']:,.0f} a device",
            f"step:     {seconds['median']:.4f} s for {result['tokens_per_step']:,} tokens",
            f"compiled: {compilation['cold']:.1f} s, {compilation['warm']:.1f} s from the compilation cache",
            f"FLOPs:    {result['model_flops_per_second'] / 1e9:,.1f} GFLOP/s of the model ({CONVENTION}), MFU {mfu}",
            f"memory:   peak of the process {gigabytes(memory['peak_host_bytes'])}{on_device}; by the compiler a "
            f"device holds {gigabytes(memory['arguments'])} between steps and {gigabytes(memory['temporary'])} more "
            "in one",
            *operations,
        ]
    )


class MeasuredStep:
    """The step of a program with state and batch, ready to be run; to be used under `jax.set_mesh(program.mesh)`."""

    def __init__(self, program: Program) -> None:
        """Compile twice, without and with what the first left in the compilation cache; begin with fresh parameters."""
        self.program = program
        self.compile_seconds: dict[str, float] = {}
        """`cold` and `warm`, tracing included."""
        with _empty_compilation_cache():
            for kind in ("cold", "warm"):
                jax.clear_caches()
                started = time.perf_counter()
                self._compiled = program.step.lower(  # pyright: ignore[reportFunctionMemberAccess]
                    program.state_shapes, program.frozen_shapes, program.batch_shapes(program.config.batch_size)
                ).compile()
                self.compile_seconds[kind] = time.perf_counter() - started
        self._state, self._frozen = program.init(jax.random.key(0))
        self._batch = synthetic_batch(program)

    def turn(self, steps: int) -> None:
        """Make some steps; all their results are there on return."""
        metrics: Any = None
        for _ in range(steps):
            self._state, metrics = self._compiled(self._state, self._frozen, self._batch)
        jax.block_until_ready((self._state, metrics))

    def profile(self, steps: int) -> dict[str, Any]:
        """The ten heaviest operations of so many more steps, see `heaviest.profiled`."""
        return profiled(lambda: self.turn(steps), steps, self._compiled.as_text() or "")

    def report(self, seconds: list[float]) -> dict[str, Any]:
        """Speed, compilation and memory as JSON values.

        Args:
            seconds: those of a step, by turn.
        """
        program = self.program
        tokens = self._batch.token_count
        times = summary(seconds)
        return {
            **program.rates(tokens, times["median"]),
            "tokens_per_second_by_turn": [tokens / each for each in seconds],
            "model_flops_per_second": program.flops_per_token * tokens / times["median"],
            "flops_per_token": program.flops_per_token,
            "tokens_per_step": tokens,
            "step_seconds": times,
            "compile_seconds": self.compile_seconds,
            "memory": self.memory(),
            "parameters": program.model.parameter_count(),
            "device_kind": program.mesh.devices.flat[0].device_kind,
            "devices": program.mesh.size,
        }

    def memory(self) -> dict[str, int | None]:
        """Bytes: the most this process and its fullest device have held so far (None: the device does not say), and a
        device's share of the step by the compiler's account. `arguments` are kept between steps and hold the results
        too, but for `results_not_in_place`; `temporary` exists within a step."""
        statistics = [device.memory_stats() or {} for device in self.program.mesh.local_devices]
        peaks = [each["peak_bytes_in_use"] for each in statistics if "peak_bytes_in_use" in each]
        account = self._compiled.memory_analysis()
        return {
            "peak_host_bytes": peak_host_bytes(),
            "peak_device_bytes": max(peaks, default=None),
            "arguments": account.argument_size_in_bytes,
            "temporary": account.temp_size_in_bytes,
            "results_not_in_place": account.output_size_in_bytes - account.alias_size_in_bytes,
        }


def synthetic_batch(program: Program) -> Batch:
    """Full rows of random tokens, one document each."""
    size, length = program.config.batch_size, program.sequence_length
    # Drawn for the whole batch, so that every process agrees on it.
    ids = np.random.default_rng(0).integers(0, program.model.config.vocab_size, (size, length + 1), np.int32)
    rows = [TokenBatch.empty_row(length) for _ in range(size)]
    for row, own in zip(rows, ids, strict=True):
        write_segment(row, 0, 1, own)
    mine = [rows[number] for number in placing.local_rows(program.mesh, size)]
    return program.place_batch({name: np.stack([row[name] for row in mine]) for name in mine[0]}, size)


@contextlib.contextmanager
def _empty_compilation_cache() -> Iterator[None]:
    """An empty cache on disk instead of the usual one, which may already hold the program."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    with tempfile.TemporaryDirectory() as folder:
        try:
            for name, value in zip(names, (folder, 0.0), strict=True):
                jax.config.update(name, value)
            compilation_cache.reset_cache()
            yield
        finally:
            for name, value in before.items():
                jax.config.update(name, value)
            compilation_cache.reset_cache()
