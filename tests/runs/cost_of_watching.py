"""What the watchdog costs a step: `python tests/runs/cost_of_watching.py`, with nothing else running.

Steps of the tiny model in blocks, every other one watched as in a job of several processes (with a board in this
process in place of that of process 0), so that both see the same machine. Prints the ratio of the medians, and how it
varies from pair to pair of blocks."""

import contextlib
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from llama_jax.config import COMMANDS, PRESETS
from llama_jax.core.config import SuperviseConfig
from llama_jax.core.processes import watchdog
from llama_jax.core.processes.peers import Peers
from llama_jax.core.settings.command_line import parse
from llama_jax.pretrain import build
from llama_jax.supervised.config import PretrainConfig

BLOCKS, STEPS = 60, 20


def watched(folder: Path) -> watchdog.Watchdog:
    board: dict[int, str] = {}
    peers = Peers(0, 2, lambda text: board.update({0: text, 1: text}), lambda: dict(board))
    return watchdog.Watchdog(SuperviseConfig(), 60, peers, folder)


def main() -> None:
    argv = ["--config", "tiny/pretrain"]
    config = parse(PretrainConfig, argv, command="pretrain", commands=COMMANDS, presets=PRESETS)
    program, size = build(config), config.training.batch_size
    row = program.batch.empty_row(config.data.sequence_length)
    rows = {name: np.stack([array] * size) for name, array in row.items()}
    seconds: dict[bool, list[float]] = {False: [], True: []}
    with jax.set_mesh(program.mesh), tempfile.TemporaryDirectory() as folder:
        state, frozen = program.init(jax.random.key(0))
        step = 0
        for block in range(-2, BLOCKS):  # the first two compile
            is_watched = block % 2 == 1
            with watched(Path(folder)) if is_watched else contextlib.nullcontext():
                began = time.perf_counter()
                for _ in range(STEPS if block >= 0 else 2):
                    step += 1
                    watchdog.mark(f"step {step}", is_step=True)
                    watchdog.mark(f"step {step}, computing", is_step=True)
                    state, metrics = program.step(state, frozen, program.place_batch(rows, size))
                    jax.block_until_ready(metrics)
                if block >= 0:
                    seconds[is_watched].append((time.perf_counter() - began) / STEPS)
    ratios = np.array(seconds[True]) / np.array(seconds[False])
    print(f"without: {1e3 * np.median(seconds[False]):.3f} ms a step, with: {1e3 * np.median(seconds[True]):.3f} ms")
    ratio = np.median(seconds[True]) / np.median(seconds[False])
    low, middle, high = np.percentile(ratios, [25, 50, 75])
    print(
        f"ratio of the medians {ratio:.4f}; by pair of blocks: median {middle:.4f}, quartiles {low:.4f} to {high:.4f}"
    )


if __name__ == "__main__":
    main()
