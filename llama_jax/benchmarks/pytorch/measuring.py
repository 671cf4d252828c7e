"""`benchmark --program pytorch`: the training step and decoding of a config in plain PyTorch, on the device at hand.
Starts no JAX."""

import dataclasses
import importlib.util
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from llama_jax.benchmarks.config import BenchmarkConfig
from llama_jax.benchmarks.results import say
from llama_jax.benchmarks.turns import peak_host_bytes, processors, summary, timed
from llama_jax.core.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from llama_jax.benchmarks.pytorch.model import Llama


def measure_pytorch(config: BenchmarkConfig) -> dict[str, Any]:
    """Tokens per second of the step, or of decoding.

    Raises:
        UserError: there is no PyTorch, or the config asks for what this model has not.
    """
    _check(config)
    import torch

    # On a GPU what people run there; on a CPU compiling takes a C++ compiler, and minutes.
    compiled = torch.cuda.is_available()
    device = torch.device("cuda" if compiled else "cpu")
    if compiled:
        torch.set_float32_matmul_precision("high")  # TensorFloat-32, as JAX has it
    else:
        torch.set_num_threads(processors())
    torch.manual_seed(0)
    name = torch.cuda.get_device_name() if compiled else f"{processors()} threads"
    what = f"torch {torch.__version__}, {'compiled' if compiled else 'eager'}, {name}"
    say(config, f"pytorch: {what}")
    measured = _decoding(config, device) if config.what == "decode" else _training(config, device)
    peak = torch.cuda.max_memory_allocated() if compiled else None
    return {"what": what, **measured, "peak_device_bytes": peak, "peak_host_bytes": peak_host_bytes()}


def _check(config: BenchmarkConfig) -> None:
    if importlib.util.find_spec("torch") is None:
        raise UserError("--program pytorch: needs torch; pip install torch")
    if config.what == "lora":
        if list(config.lora.target_modules) != ["all-linear"] or config.lora.dropout or config.lora.dora:
            raise UserError("--program pytorch: has low-rank factors on all Linears, without dropout and DoRA")
        if config.model_dtype not in ("float32", "bfloat16"):
            raise UserError(f"--model_dtype {config.model_dtype}: --program pytorch has no quantised weights")


def _type(name: str) -> "torch.dtype":
    import torch

    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def _made(config: BenchmarkConfig, device: "torch.device", dtype: str) -> "Llama":
    """The model with random weights in a type, made where it lives."""
    import torch

    from llama_jax.benchmarks.pytorch.model import Llama

    before = torch.get_default_dtype()
    torch.set_default_dtype(_type(dtype))
    try:
        with device:
            lora = dataclasses.asdict(config.lora) if config.what == "lora" else None
            return Llama(config.run.model.architecture.to_json(), lora)
    finally:
        torch.set_default_dtype(before)


def _training(config: BenchmarkConfig, device: "torch.device") -> dict[str, Any]:
    """The step that people write: automatic mixed precision over float32 weights (of LoRA over a frozen base), clipping
    and fused AdamW. A microbatch that does not fit a GPU is halved; at last activations are made twice."""
    import torch

    training = config.run.training
    step, rows, checkpointed = None, training.batch_size // training.microbatches, False
    while step is None:
        try:
            step = _step(config, device, rows, checkpointed)
            for _ in range(config.warmup_steps):
                step()
        except torch.OutOfMemoryError:
            if checkpointed:
                raise
            step = None
        if step is None:  # outside of the handler, which holds what was made
            torch.cuda.empty_cache()
            rows, checkpointed = max(rows // 2, 1), rows == 1
            say(config, f"pytorch: out of memory; {rows} rows at a time{', checkpointed' * checkpointed}")
    tokens = training.batch_size * config.run.data.sequence_length

    def turn(steps: int) -> None:
        for _ in range(steps):
            step()

    times = summary([timed(turn, config.steps_per_turn) for _ in range(config.turns)])
    say(config, f"pytorch: {tokens / times['median']:,.1f} tokens/s, noise ±{times['noise']:.1%}")
    return {
        "tokens_per_second": tokens / times["median"],
        "step_seconds": times,
        "rows_at_a_time": rows,
        "checkpointed": checkpointed,
    }


def _step(config: BenchmarkConfig, device: "torch.device", rows: int, checkpointed: bool) -> Callable[[], float]:
    import torch

    training, length = config.run.training, config.run.data.sequence_length
    model = _made(config, device, config.model_dtype if config.what == "lora" else "float32")
    model.checkpointed = checkpointed
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        trained,
        lr=training.peak_learning_rate,
        betas=(training.beta1, training.beta2),
        eps=training.epsilon,
        weight_decay=training.weight_decay,
        fused=True,
    )
    loss_of: Any = torch.compile(model) if device.type == "cuda" else model
    dtype = _type(config.run.compute.dtype)
    mixed = dtype != torch.float32
    parts = training.batch_size // rows

    def step() -> float:
        # Others each time: of a few that are soon known by heart, gradients become too small for normal numbers.
        ids = torch.randint(0, model.config["vocab_size"], (training.batch_size, length + 1), device=device)
        total = torch.zeros((), device=device)
        for part in ids.split(rows):
            with torch.autocast(device.type, dtype, enabled=mixed):
                loss = loss_of(part[:, :-1], part[:, 1:]) / parts
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(trained, training.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return total.item()

    return step


def _decoding(config: BenchmarkConfig, device: "torch.device") -> dict[str, Any]:
    """Greedy decoding over caches of fixed size; on a GPU the step is compiled into a CUDA graph."""
    import torch

    model = _made(config, device, config.run.compute.dtype).requires_grad_(False)
    step: Any = torch.compile(model.logits, mode="reduce-overhead") if device.type == "cuda" else model.logits
    result: dict[str, Any] = {}
    with torch.no_grad():
        for streams in config.streams:
            write = _writer(config, model, step, streams, device)
            write()
            rates = [write() for _ in range(config.turns)]
            result[str(streams)] = {kind: summary([each[kind] for each in rates]) for kind in rates[0]}
            medians = {kind: found["median"] for kind, found in result[str(streams)].items()}
            said = ", ".join(f"{kind} {median:,.1f}" for kind, median in medians.items())
            say(config, f"pytorch: {streams} x {config.prompt_tokens} tokens: {said} tokens/s")
    return {"tokens_per_second": result}


def _writer(
    config: BenchmarkConfig, model: "Llama", step: Any, streams: int, device: "torch.device"
) -> Callable[[], dict[str, float]]:
    import torch

    shape, dtype = model.config, _type(config.run.compute.dtype)
    size = (streams, shape["num_kv_heads"], config.decode_tokens, shape["head_size"])
    caches = [
        (torch.zeros(size, dtype=dtype, device=device), torch.zeros(size, dtype=dtype, device=device))
        for _ in range(shape["num_layers"])
    ]
    if device.type == "cuda":
        for array in (array for cache in caches for array in cache):
            # Else no CUDA graph is made of a step, since it changes what it is given.
            torch._dynamo.mark_static_address(array)

    def finished() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def chosen(logits: "Tensor") -> "Tensor":
        return logits[:, -1].argmax(-1, keepdim=True)

    def write() -> dict[str, float]:
        prompts = torch.randint(0, shape["vocab_size"], (streams, config.prompt_tokens), device=device)
        positions = torch.arange(config.decode_tokens, device=device)
        started = finished()
        # Not compiled: a prompt is read once, and is mostly large products.
        token = chosen(model.logits(prompts, positions[: config.prompt_tokens], caches))
        begun = finished()
        for place in range(config.prompt_tokens, config.decode_tokens - 1):
            token = chosen(step(token, positions[place : place + 1], caches)).clone()
        seconds = finished() - begun
        return {
            "prefill": streams * config.prompt_tokens / (begun - started),
            "decode": streams * (config.new_tokens - 1) / seconds,
            "all": streams * config.new_tokens / (begun - started + seconds),
        }

    return write
