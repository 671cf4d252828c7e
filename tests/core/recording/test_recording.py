"""Where the numbers of a run go."""

import io
import json
import math
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from llama_jax.core.errors import UserError
from llama_jax.core.recording.dashboards import TensorBoard, WeightsAndBiases
from llama_jax.core.recording.metrics import JsonLines, Sink, read_metrics
from llama_jax.core.recording.terminal import LiveLine, Terminal


def record(step, **more):
    return {"step": step, "loss": 1 / step, "tokens": 100 * step, "model_flops_utilization": None, **more}


def test_metrics_read_back_exactly(tmp_path):
    sink: Sink = JsonLines(tmp_path / "metrics.jsonl", 0)
    records = [record(1, loss=0.1 + 0.2, tokens=2**60 + 1), record(2, loss=5e-324), record(3, loss=1 / 3)]
    for one in records:
        sink.write(one)
    assert read_metrics(tmp_path / "metrics.jsonl") == records, "already there before close"
    sink.close()


def test_non_finite_numbers_are_valid_json_and_read_back(tmp_path):
    sink = JsonLines(tmp_path / "metrics.jsonl", 0)
    sink.write(record(1, loss=math.nan, a=math.inf, b=-math.inf, below={"c": -math.inf}))
    sink.close()
    line = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=pytest.fail)
    assert (line["loss"], line["a"], line["b"], line["model_flops_utilization"]) == (
        "NaN",
        "Infinity",
        "-Infinity",
        None,
    )
    back = read_metrics(tmp_path / "metrics.jsonl")[0]
    assert math.isnan(back["loss"] or 0)
    assert (back["a"], back["b"], back["below"]) == (math.inf, -math.inf, {"c": -math.inf})


@pytest.mark.parametrize("rewrite_seconds", [None, 1000.0])
def test_each_step_is_there_once_after_a_resume(tmp_path, rewrite_seconds):
    path = tmp_path / "metrics.jsonl"
    sink = JsonLines(path, 0, rewrite_seconds=rewrite_seconds)
    for step in range(1, 8):
        sink.write(record(step, process=1))
    sink.close()
    sink = JsonLines(path, 4, rewrite_seconds=rewrite_seconds)
    for step in range(5, 10):
        sink.write(record(step, process=2))
    sink.close()
    assert [(r["step"], r["process"]) for r in read_metrics(path)] == [(s, 1 if s < 5 else 2) for s in range(1, 10)]


def test_broken_lines_are_dropped_at_opening(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n\0\0\n[]\n{"loss": 2}\n{"step": 1}\n{"step": "2"}\n{"step": 2}\n{"step": 3, "lo')
    JsonLines(path, 9).close()
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_a_new_run_empties_the_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n{"step": 1}\n')
    JsonLines(path, 0).close()
    assert read_metrics(path) == []
    assert read_metrics(tmp_path / "missing") == []


KILLED = """
import sys
from pathlib import Path
from llama_jax.core.recording.metrics import JsonLines
sink = JsonLines(sys.argv[1], int(sys.argv[2]))
for step in range(int(sys.argv[2]) + 1, 10**9):
    sink.write({"step": step, "loss": 1 / step})
    if step == int(sys.argv[2]) + 200:
        print("go", flush=True)
"""


def test_steps_stay_whole_when_the_writer_is_killed(tmp_path):
    path, resume_step = tmp_path / "metrics.jsonl", 0
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", KILLED, path, str(resume_step)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        resume_step += 150
    JsonLines(path, resume_step).close()
    assert read_metrics(path) == [{"step": step, "loss": 1 / step} for step in range(1, resume_step + 1)]


def events_in(directory: Path) -> list:
    """What TensorBoard reads there."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c

    (file,) = directory.iterdir()
    data, events = file.read_bytes(), []
    while data:  # TFRecord: length (8 bytes), its checksum (4), the event, its checksum (4)
        length = int.from_bytes(data[:8], "little")
        for content, checksum in ((data[:8], data[8:12]), (data[12 : 12 + length], data[12 + length : 16 + length])):
            assert int.from_bytes(checksum, "little") == masked_crc32c(content)
        events.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    return events


def test_tensorboard_gets_every_number_and_hides_what_came_after_the_resumed_step(tmp_path):
    sink: Sink = TensorBoard(tmp_path, 4, pytest.fail)
    sink.write(record(5, epochs={"my file.jsonl": 1.5}))
    sink.close()
    events = events_in(tmp_path)
    scalars = {(v.tag, e.step): v.simple_value for e in events for v in e.summary.value}
    assert scalars == {("loss", 5): pytest.approx(0.2), ("tokens", 5): 500, ("epochs/my_file.jsonl", 5): 1.5}
    assert [e.step for e in events if e.session_log.status == 1] == [5]
    assert events[0].file_version == "brain.Event:2"


def test_tensorboard_neither_stands_still_nor_loses_a_number_on_a_full_disk(tmp_path):
    sink = TensorBoard(tmp_path, 0, pytest.fail)
    (file,) = tmp_path.iterdir()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size + 30, hard))
    try:
        for step in range(1, 41):
            sink.write(record(step))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(events_in(tmp_path)) == 2
    sink.write(record(41))
    sink.close()
    assert [event.step for event in events_in(tmp_path) if event.summary.value] == list(range(1, 42))


def test_tensorboard_says_that_a_remote_path_gets_nothing():
    said = []
    sink = TensorBoard("gs://bucket/run/tensorboard", 0, said.append)
    sink.write(record(1))
    sink.close()
    assert len(said) == 1
    assert "gs://bucket/run/tensorboard" in said[0]


def full(step, **more):
    return {
        "step": step,
        "loss": 2.5,
        "learning_rate": 3e-4,
        "grad_norm": 0.5,
        "tokens_per_second": 12345.6,
        "step_seconds": 2.0,
        "data_wait_seconds": 0.5,
        "skipped_updates": 0,
        "model_flops_utilization": 0.412,
        **more,
    }


def test_without_a_terminal_there_is_a_line_now_and_then_and_at_the_end():
    said = []
    terminal = Terminal(25, 10, said.append, console=Console(file=io.StringIO()))
    for step in range(1, 26):
        terminal.write(full(step))
    terminal.close()
    assert [line.split("/")[0] for line in said] == ["step 10", "step 20", "step 25"]
    assert said[0] == (
        "step 10/25 (40%) | loss 2.5000 | lr 3.00e-04 | grad norm 0.500 | 12,346 tokens/s | MFU 41.2% | "
        "data wait 25% | ETA 30 s"
    )
    assert "ETA" not in said[2]


def test_what_is_not_known_is_left_out_and_validation_always_shown():
    said = []
    terminal = Terminal(2000, 1000, said.append, console=Console(file=io.StringIO()))
    terminal.write({"step": 3, "loss": 2.0, "model_flops_utilization": None, "validation_loss": 1.5})
    terminal.write(full(4, validation_loss=1.5, validation_bits_per_byte=0.75, skipped_updates=2))
    assert said[0] == "step 3/2,000 (0%) | loss 2.0000 | validation loss 1.5000"
    assert "validation loss 1.5000, 0.7500 bits/byte | data wait 25% | skipped updates 2 | ETA 67 min" in said[1]


def test_the_remaining_time_forgets_the_slow_first_step():
    said = []
    terminal = Terminal(11, 1, said.append, console=Console(file=io.StringIO()))
    terminal.write(full(1, step_seconds=60.0))
    terminal.write(full(2, step_seconds=1.0))
    assert said[0].endswith("ETA 10 min")
    assert said[1].endswith("ETA 9 s")


def test_a_terminal_shows_one_live_line_and_notes_above_it():
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=200)
    terminal = Terminal(3, 1, lambda text: console.print(text, highlight=False), console=console)
    terminal.write(full(1))
    terminal.write(full(2, validation_loss=1.5))
    terminal.write(full(3))
    terminal.close()
    last = output.getvalue().rsplit("\r", 1)[-1]
    assert "step 3/3 (100%) | loss 2.5000 | 12,346 tokens/s | MFU 41.2%" in last
    assert "step 2" not in last
    assert "step 2: validation loss 1.5000\n" in output.getvalue()


def test_a_live_line_without_a_terminal_is_a_line_now_and_then_and_the_last_one():
    said = []
    line = LiveLine(said.append, seconds_between_lines=1000.0, console=Console(file=io.StringIO()))
    line.update(lambda: pytest.fail())
    assert not said
    line.close("3 of 3")
    often = LiveLine(said.append, seconds_between_lines=0.0, console=Console(file=io.StringIO()))
    often.update(lambda: "again")
    often.close()
    assert said == ["3 of 3", "again"]


def test_a_missing_wandb_is_one_line_that_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(
        UserError, match=r"^tracking\.wandb: needs the package wandb; pip install 'llama_jax\[wandb\]'$"
    ):
        WeightsAndBiases(tmp_path, True, {})
    assert list(tmp_path.iterdir()) == []


def test_wandb_goes_on_with_the_same_run_and_respects_offline_mode(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    ids = []
    for step in (1, 2):
        sink: Sink = WeightsAndBiases(tmp_path, "team/project", {"seed": 0})
        sink.write(record(step))
        sink.close()
        ids.append((tmp_path / "wandb_id.txt").read_text().strip())
    assert ids[0] == ids[1]
    names = [path.name for path in (tmp_path / "wandb").glob("offline-run-*")]
    assert names and all(name.endswith(ids[0]) for name in names)


@pytest.mark.slow
def test_a_run_imports_wandb_only_when_it_is_asked_for(tmp_path):
    package = tmp_path / "wandb"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('wandb was imported')")
    run = tmp_path / "run"
    sizes = ["--config", "tiny/pretrain", "--training.steps", "1", "--model.num_layers", "1"]
    command = [sys.executable, "-m", "llama_jax.pretrain", *sizes, "--run_dir", str(run)]
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[3])])
    environment = os.environ | {"PYTHONPATH": path, "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert "wandb" not in ended.stderr
    assert len(read_metrics(run / "metrics.jsonl")) == 1
