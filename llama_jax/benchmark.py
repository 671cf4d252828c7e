"""Measure speed and memory: `python -m llama_jax.benchmark train`, `… lora`, `… data`, `… scaling`."""

if __name__ == "__main__":
    from llama_jax.__main__ import main

    main("benchmark")

import dataclasses
import functools
import importlib.util
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
from etils import epath

from llama_jax import lora, pretrain
from llama_jax.benchmarks import scaling, turns
from llama_jax.benchmarks.step import MeasuredStep
from llama_jax.config import COMMANDS, PRESETS, BenchmarkConfig
from llama_jax.core import placing, tree
from llama_jax.core.distributed import is_main_process, start_up
from llama_jax.core.errors import UserError
from llama_jax.core.files import write_whole
from llama_jax.core.mesh import make_mesh
from llama_jax.core.settings.command_line import parse, to_yaml
from llama_jax.data.rows.loader import Loader
from llama_jax.data.rows.mixture import Mixture, open_mixture
from llama_jax.data.tokenizers import Tokenizer, load_tokenizer, train_tokenizer
from llama_jax.model.flops import CONVENTION
from llama_jax.runs.description import description
from llama_jax.supervised import fine_tuning
from llama_jax.training.program import Program


def benchmark(config: BenchmarkConfig) -> None:
    """Run the command."""
    if config.against is not None:
        # Nothing here may start JAX: the memory and the processors belong to the two sides.
        _finish(config, f"{config.what}_against_{config.against}", _against(config))
        return
    who = start_up(config.distributed)
    _say(config, who)
    measure = {"train": _train, "lora": _train, "data": _data, "scaling": _scaling}[config.what]
    result = measure(config)
    if is_main_process():
        _finish(config, config.what, result)


def own_side() -> None:
    """Be our side of `--against`; see `turns.Side`."""
    turns.serve(_prepare_own_side)


def _program(config: BenchmarkConfig) -> Program:
    """The training step of `train`, or of `lora`."""
    if config.what != "lora":
        return pretrain.build(config)
    method = lora.method(config.lora, config.model_dtype, config.training.peak_learning_rate)
    return fine_tuning.build(config, method, config.model.architecture, config.data.sequence_length)


def _train(config: BenchmarkConfig) -> dict[str, Any]:
    program = _program(config)
    _say(config, description(program, config.model.size))
    with jax.set_mesh(program.mesh):
        result = MeasuredStep(program).measure(config.warmup_steps, config.turns, config.steps_per_turn)
    _say(config, _described(result))
    return result


def _described(result: dict[str, Any]) -> str:
    """The report of a step for people."""
    seconds, memory, compilation = result["step_seconds"], result["memory"], result["compile_seconds"]
    utilization = result["model_flops_utilization"]
    mfu = "not known, no peak for this device" if utilization is None else f"{utilization:.1%}"
    speeds = result["tokens_per_second_by_turn"]
    device = memory["peak_device_bytes"]
    on_device = "" if device is None else f", fullest device {_gigabytes(device)}"
    return "\n".join(
        [
            f"speed:    {result['tokens_per_second']:,.0f} tokens/s (turns {min(speeds):,.0f}–{max(speeds):,.0f}, "
            f"noise ±{seconds['noise']:.1%}), {result['tokens_per_second_per_device']:,.0f} a device",
            f"step:     {seconds['median']:.4f} s for {result['tokens_per_step']:,} tokens",
            f"compiled: {compilation['cold']:.1f} s, {compilation['warm']:.1f} s from the compilation cache",
            f"FLOPs:    {result['model_flops_per_second'] / 1e9:,.1f} GFLOP/s of the model ({CONVENTION}), MFU {mfu}",
            f"memory:   peak of the process {_gigabytes(memory['peak_host_bytes'])}{on_device}; by the compiler a "
            f"device holds {_gigabytes(memory['arguments'])} between steps and {_gigabytes(memory['temporary'])} more "
            "in one",
        ]
    )


def _against(config: BenchmarkConfig) -> dict[str, Any]:
    """Both sides in turns.

    Raises:
        UserError: a package of the other side is missing, or the run is not for one process on CPU.
    """
    _check_comparable(config)
    task = {
        "model": config.model.architecture.to_json(),
        "training": dataclasses.asdict(config.training),
        "sequence_length": config.data.sequence_length,
        "warmup_steps": config.warmup_steps,
        "lora": dataclasses.asdict(config.lora) if config.what == "lora" else None,
    }
    programs = [
        ("llama_jax", "llama_jax.benchmark:own_side", to_yaml(config)),
        (str(config.against), "llama_jax.benchmarks.transformers_side:main", task),
    ]
    with turns.sides(programs) as (ours, theirs):
        # One after the other, so that neither compiles while the other warms up.
        facts = {side.name: side.prepare() for side in (ours, theirs)}
        for side in (ours, theirs):
            own = facts[side.name]
            _say(config, f"{side.name}: {own['what']}, {own['parameters']:,} parameters, {own['trained']:,} train")
        if len({(each["parameters"], each["trained"]) for each in facts.values()}) > 1:
            raise RuntimeError("the two sides do not train the same model; their numbers of parameters are above")
        tokens = config.training.batch_size * config.data.sequence_length
        for number in range(config.turns):
            for side in (ours, theirs):
                side.take_turn(config.steps_per_turn)
            speeds = [tokens / side.seconds[-1] for side in (ours, theirs)]
            _say(
                config,
                f"turn {number + 1:>2}: {speeds[0]:>9,.1f} and {speeds[1]:>9,.1f} tokens/s, ratio "
                f"{speeds[0] / speeds[1]:.3f}",
            )
    return _compared(config, ours, theirs, facts)


def _check_comparable(config: BenchmarkConfig) -> None:
    for package in ("torch", "transformers", *(["peft"] if config.what == "lora" else [])):
        if importlib.util.find_spec(package) is None:
            raise UserError(f"--against {config.against}: needs {package}; pip install 'llama_jax[oracle]'")
    if config.distributed.coordinator is not None or config.training.microbatches > 1 or config.training.trainable:
        raise UserError(
            f"--against {config.against}: is for one process, one microbatch and all parameters; unset "
            "distributed.coordinator, training.microbatches and training.trainable"
        )


def _compared(
    config: BenchmarkConfig, ours: turns.Side, theirs: turns.Side, facts: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """The report of both sides."""
    tokens = config.training.batch_size * config.data.sequence_length
    result: dict[str, Any] = {
        side.name: {
            **facts[side.name],
            "tokens_per_second": tokens / statistics.median(side.seconds),
            "step_seconds": turns.summary(side.seconds),
            "peak_host_bytes": side.peak_host_bytes,
        }
        for side in (ours, theirs)
    }
    ratios = [other / own for own, other in zip(ours.seconds, theirs.seconds, strict=True)]
    result["ratio"] = statistics.median(theirs.seconds) / statistics.median(ours.seconds)
    result["ratio_by_turn"] = turns.summary(ratios)
    result["memory_ratio"] = ours.peak_host_bytes / theirs.peak_host_bytes
    for side in (ours, theirs):
        own = result[side.name]
        _say(
            config,
            f"{side.name}: {own['tokens_per_second']:,.1f} tokens/s, noise ±{own['step_seconds']['noise']:.1%}, peak "
            f"memory {_gigabytes(side.peak_host_bytes)}",
        )
    _say(
        config,
        f"ratio of the medians: {result['ratio']:.3f} in speed (by turn {min(ratios):.3f}–{max(ratios):.3f}), "
        f"{result['memory_ratio']:.2f} in peak memory",
    )
    return result


def _prepare_own_side(settings: str) -> tuple[turns.Turn, dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.yaml"
        file.write_text(settings, encoding="utf-8")
        config = parse(
            BenchmarkConfig, ["--config", str(file)], command="benchmark", commands=COMMANDS, presets=PRESETS
        )
    who = start_up(config.distributed)
    if jax.devices()[0].platform != "cpu":
        raise UserError(f"--against {config.against}: compares on CPU, but this is {who}; set JAX_PLATFORMS=cpu")
    program = _program(config)
    jax.set_mesh(program.mesh)
    step = MeasuredStep(program)
    step.turn(config.warmup_steps)
    what = f"jax {jax.__version__}, {turns.processors()} threads"
    facts = {"compile_seconds": step.compile_seconds, "memory": step.memory()}
    trained = program.model.parameter_count() if program.trains_all else tree.size(program.state_shapes.trainable)
    return step.turn, {"what": what, "parameters": program.model.parameter_count(), "trained": trained, **facts}


def _data(config: BenchmarkConfig) -> dict[str, Any]:
    """Tokens per second that the loader delivers on this host, by number of workers."""
    mixture, _ = open_mixture(config.data).hold_out(config.data.validation_fraction)
    tokenizer = _tokenizer(config, mixture)
    mesh = make_mesh(config.mesh)
    result: dict[str, Any] = {"source": [source.name for source in mixture.sources], "workers": {}}
    for workers in config.workers:
        loader = Loader(
            mixture,
            tokenizer,
            dataclasses.replace(config.data, workers=workers),
            config.seed,
            batch_size_at=lambda step: config.training.batch_size,
            rows_of=functools.partial(placing.local_rows, mesh),
        )
        loader.start()
        try:
            speeds = _loader_speeds(config, loader)
        finally:
            loader.close()
        result["workers"][str(workers)] = speeds
        _say(
            config,
            f"{workers} workers: {speeds['median']:,.0f} tokens/s (turns {speeds['least']:,.0f}–{speeds['most']:,.0f})",
        )
    return result


def _tokenizer(config: BenchmarkConfig, mixture: Mixture) -> Tokenizer:
    named = config.data.tokenizer or mixture.tokenizer_directory
    if named is not None:
        return load_tokenizer(named)
    _say(config, f"training a tokenizer of {config.model.vocab_size} pieces")
    return train_tokenizer(mixture.texts(), config.model.vocab_size)


def _loader_speeds(config: BenchmarkConfig, loader: Loader) -> dict[str, Any]:
    # The queue is full and every stream is open after so many batches.
    batches = config.data.prefetch_batches + -(-config.data.streams // config.training.batch_size)
    for _ in range(batches):
        next(loader)
    speeds = []
    for _ in range(config.turns):
        tokens, started, passed = 0, time.perf_counter(), 0.0
        while passed < config.seconds:
            rows, _ = next(loader)
            tokens += rows["tokens"].size
            passed = time.perf_counter() - started
        speeds.append(tokens / passed)
    return turns.summary(speeds)


def _scaling(config: BenchmarkConfig) -> dict[str, Any]:
    context, width, batch = config.contexts[0], config.widths[0], config.batch_sizes[0]
    base = (context, width, batch)
    rows = {length: max(1, batch * context // length) for length in config.contexts}
    wanted: dict[scaling.Axis, list[tuple[int, int, int]]] = {
        "context": [(length, width, rows[length]) for length in sorted(config.contexts)],
        "width": [(context, size, batch) for size in sorted(config.widths)],
        "batch": [(context, width, size) for size in sorted(config.batch_sizes)],
    }
    points = _points(config, sorted({place for places in wanted.values() for place in places}))
    sweeps: scaling.Sweeps = {axis: [points[place] for place in places] for axis, places in wanted.items()}
    _say(config, scaling.table(sweeps, points[base]))
    if is_main_process():
        model, device = config.model, jax.devices()[0].device_kind
        title = f"{model.num_layers} layers, {config.compute.dtype}, {jax.device_count()} x {device}"
        epath.Path(config.output).mkdir(parents=True, exist_ok=True)
        scaling.draw(sweeps, points[base], title, epath.Path(config.output) / "scaling.png")
    return {
        "base": dataclasses.asdict(points[base]),
        "sweeps": {axis: [dataclasses.asdict(point) for point in along] for axis, along in sweeps.items()},
    }


def _points(config: BenchmarkConfig, places: list[tuple[int, int, int]]) -> dict[tuple[int, int, int], scaling.Point]:
    """Measure each (context, width, batch)."""
    measured: dict[tuple[int, int, int], tuple[MeasuredStep, list[float]]] = {}
    for place in places:
        program = _sized(config, *place)
        with jax.set_mesh(program.mesh):
            step = MeasuredStep(program)
            step.turn(config.warmup_steps)
        measured[place] = step, []
        _say(config, f"compiled: context {place[0]:,}, width {place[1]:,}, batch {place[2]:,}")
    # In turns, so that a change of the machine's speed on the way hits all of them.
    for _ in range(config.turns):
        for step, seconds in measured.values():
            with jax.set_mesh(step.program.mesh):
                seconds.append(turns.timed(step.turn, config.steps_per_turn))
    points = {}
    for (context, width, batch), (step, seconds) in measured.items():
        tokens = context * batch
        points[context, width, batch] = scaling.Point(
            context=context,
            width=width,
            batch=batch,
            tokens_per_second=tokens / statistics.median(seconds),
            slowest=tokens / max(seconds),
            fastest=tokens / min(seconds),
            flops_per_token=step.program.flops_per_token,
        )
    return points


def _sized(config: BenchmarkConfig, context: int, width: int, batch: int) -> Program:
    """The program of the config at another size.

    Raises:
        UserError: `model.head_size` does not divide the width.
    """
    model = config.model
    if width % model.head_size:
        raise UserError(f"--widths: model.head_size {model.head_size} does not divide {width}")
    heads = width // model.head_size
    group = model.num_heads // model.num_kv_heads
    sized = dataclasses.replace(
        model,
        width=width,
        mlp_width=-(-model.mlp_width * width // model.width // 8) * 8,
        num_heads=heads,
        num_kv_heads=max(1, heads // group),
        context_length=context,
    )
    return pretrain.build(
        dataclasses.replace(
            config,
            model=sized,
            data=dataclasses.replace(config.data, sequence_length=context),
            training=dataclasses.replace(config.training, batch_size=batch, batch_ramp=(), microbatches=1),
        )
    )


def _finish(config: BenchmarkConfig, name: str, result: dict[str, Any]) -> None:
    """Keep the result, and print it where that is asked for."""
    file = epath.Path(config.output) / f"{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, json.dumps(result, indent=2) + "\n")
    _say(config, f"kept in {file}")
    if config.json:
        print(json.dumps(result))


def _say(config: BenchmarkConfig, text: str) -> None:
    # With --against this process must not ask JAX which one it is, since that starts it; it is the only one then.
    if config.against is not None or is_main_process():
        print(text, file=sys.stderr if config.json else sys.stdout, flush=True)


def _gigabytes(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"
