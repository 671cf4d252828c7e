"""What the command line and YAML files say, and how mistakes are reported."""

import resource
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from llama_jax.config import COMMANDS as REAL_COMMANDS
from llama_jax.config import PRESETS as REAL_PRESETS
from llama_jax.core.config import MeshConfig
from llama_jax.core.errors import SavedAfterSignal, UserError
from llama_jax.core.settings.command_line import parse, run_command, to_yaml
from llama_jax.core.settings.parser import command_for
from llama_jax.model.config import ModelConfig, RopeScaling, sized
from llama_jax.training.config import TrainingConfig


@dataclass(frozen=True)
class Train:
    """Train a model."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """The model."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """Optimization."""
    mesh: MeshConfig = field(default_factory=MeshConfig)
    """Devices."""
    run_dir: str | None = None
    """Folder of the run."""
    names: tuple[str, ...] = ()
    """Some names."""
    resume: int | Literal["auto", "never"] = "auto"
    """Where to begin."""
    dry_run: bool = False
    """Only compile."""


@dataclass(frozen=True)
class Sample:
    """Sample from a model."""

    source: str
    """Where from."""
    prompt: str = ""
    """What to continue."""
    title: str | None = None
    """What to call it."""


COMMANDS = {"train": Train, "sample": Sample}
PRESETS = {"model.size": sized}


def train(*argv: str) -> Train:
    return parse(Train, argv, command="train", commands=COMMANDS, presets=PRESETS)


def sample(*argv: str) -> Sample:
    return parse(Sample, argv, command="sample", commands=COMMANDS)


def in_yaml(folder: Path, text: str) -> str:
    file = folder / "some.yaml"
    file.write_text(text)
    return str(file)


def error_of(*argv: str, of: Any = train) -> str:
    with pytest.raises(UserError) as caught:
        of(*argv)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_no_arguments_give_the_defaults():
    assert train() == Train()


@pytest.mark.parametrize(
    ("path", "text", "yaml", "value"),
    [
        ("training.steps", "7", "7", 7),
        ("training.peak_learning_rate", "1e-4", "1e-4", 1e-4),
        ("training.peak_learning_rate", "2", "2", 2.0),
        ("training.batch_ramp", "[[0,4],[9,32]]", "[[0, 4], [9, 32]]", ((0, 4), (9, 32))),
        ("training.schedule_steps", "50", "50", 50),
        ("training.schedule_steps", "null", "null", None),
        ("model.rope_scaling", "{factor: 2}", "{factor: 2}", RopeScaling(factor=2.0)),
        ("model.rope_scaling", "null", "null", None),
        ("mesh.fsdp", "-1", "-1", -1),
        ("names", "[a, b]", "[a, b]", ("a", "b")),
        ("resume", "12", "12", 12),
        ("resume", "never", "never", "never"),
        ("dry_run", "true", "true", True),
        ("run_dir", "runs/x: 1 # y", "'runs/x: 1 # y'", "runs/x: 1 # y"),
        ("run_dir", "null", "null", None),
    ],
)
def test_a_setting_is_read_alike_from_the_command_line_and_yaml(tmp_path, path, text, yaml, value):
    *section, name = path.split(".")
    body = f"{section[0]}:\n  {name}: {yaml}\n" if section else f"{name}: {yaml}\n"
    for config in (train(f"--{path}", text), train(f"--{path}={text}"), train("--config", in_yaml(tmp_path, body))):
        got = getattr(getattr(config, section[0]) if section else config, name)
        assert got == value
        assert type(got) is type(value)


def test_a_field_of_an_optional_section_can_be_set_alone(tmp_path):
    assert train("--model.rope_scaling.factor", "2").model.rope_scaling == RopeScaling(factor=2.0)
    file = in_yaml(tmp_path, "model: {rope_scaling: {factor: 2, original_context_length: 64}}")
    config = train("--config", file, "--model.rope_scaling.factor", "3")
    assert config.model.rope_scaling == RopeScaling(factor=3.0, original_context_length=64)


def test_true_or_false_settings_are_flags_that_may_have_a_value():
    assert train("--dry_run").dry_run
    assert train("--dry_run", "--resume", "never").dry_run
    assert not train("--dry_run", "false").dry_run
    assert not train("--dry_run", "--dry_run=false").dry_run


def test_the_command_line_wins_over_yaml_wherever_it_stands(tmp_path):
    file = in_yaml(tmp_path, "training: {steps: 3, warmup_steps: 1}")
    config = train("--training.steps", "5", "--config", file)
    assert (config.training.steps, config.training.warmup_steps) == (5, 1)


def test_a_later_config_file_wins_over_an_earlier_one(tmp_path):
    first = in_yaml(tmp_path, "training: {steps: 3, warmup_steps: 1}")
    second = tmp_path / "second.yaml"
    second.write_text("training.steps: 4\n")
    config = train("--config", first, "--config", str(second))
    assert (config.training.steps, config.training.warmup_steps) == (4, 1)


def test_a_preset_fills_its_section_and_explicit_fields_win(tmp_path):
    config = train("--model.size", "llama_7b", "--model.num_layers", "2").model
    assert (config.size, config.width, config.num_layers) == ("llama_7b", 4096, 2)
    file = in_yaml(tmp_path, "model: {num_layers: 3, size: llama2_7b}")
    config = train("--config", file).model
    assert (config.num_layers, config.mlp_width, config.context_length) == (3, 11008, 4096)
    config = train("--config", file, "--model.size", "llama3.2_1b", "--model.rope_scaling.low_frequency_factor", "2")
    assert config.model.num_layers == 3
    assert config.model.rope_scaling == RopeScaling(factor=32.0, low_frequency_factor=2.0)
    assert train("--model.size", "llama3.2_1b", "--model.rope_scaling", "null").model.rope_scaling is None


def test_the_printed_config_reads_back_equal(tmp_path, capsys):
    argv = ("--model.size", "llama3.2_1b", "--training.batch_ramp", "[[0, 4], [9, 32]]", "--run_dir", "# a: b")
    with pytest.raises(SystemExit) as end:
        train(*argv, "--training.peak_learning_rate", "0.1234567890123456789", "--print_config")
    assert end.value.code == 0
    file = in_yaml(tmp_path, capsys.readouterr().out)
    config = train("--config", file)
    assert config == train(*argv, "--training.peak_learning_rate", "0.1234567890123456789")
    assert Path(file).read_text() == to_yaml(config)


def test_text_is_taken_literally():
    for text in ("", "# title", "a: b", "[x", "1e5", "true", "5", "{", "~", "two\nlines", "-1"):
        assert sample("--source", text, "--title", text) == Sample(source=text, title=text)
    assert sample("--source", "null", "--title", "null") == Sample(source="null", title=None)
    assert sample("--source=--x").source == "--x"


def test_a_section_without_settings_is_empty(tmp_path):
    assert train("--config", in_yaml(tmp_path, "training:\n  # steps: 3\nmesh: {}\n")) == Train()
    assert train("--config", in_yaml(tmp_path, "# nothing\n")) == Train()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--training.stepz 3", "--training.stepz: unknown setting; did you mean 'training.steps'?"),
        ("--steps 3", "--steps: unknown setting; did you mean 'training.steps'?"),
        ("--model.rope_scaling.facto 3", "--model.rope_scaling.facto: unknown setting; did you mean"),
        ("--xyzzy 3", "--xyzzy: unknown setting"),
        ("--model llama_7b", "--model: a section, not a setting; set what is in it, such as 'model.vocab_size'"),
        ("--training.steps 1.5", '--training.steps: got "1.5", expected a whole number'),
        ("--training.z_loss x", '--training.z_loss: got "x", expected a number'),
        ("--dry_run=x", '--dry_run: got "x", expected true or false'),
        ("--resume x", '--resume: got "x", expected a whole number or one of auto, never'),
        ("--training.batch_ramp [[1]]", "expected a list of [a whole number, a whole number]"),
        ("--model.rope_scaling.factor x", '--model.rope_scaling.factor: got "x", expected a number'),
        ("--training.steps --dry_run", "--training.steps: needs a value, a whole number"),
        ("--training.steps", "--training.steps: needs a value, a whole number"),
        ("train", "train: unexpected; settings are written --name VALUE"),
        ("--dry_run yep", "yep: unexpected"),
        ("--model.size lama_7b", "model.size: unknown size 'lama_7b'; did you mean 'llama_7b'?"),
        ("--model.num_heads 7", "model.num_heads: 7 is not divisible by model.num_kv_heads 4"),
    ],
)
def test_mistakes_on_the_command_line_name_the_setting_and_what_would_be_right(argv, message):
    assert message in error_of(*argv.split())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training:\n  steps: 1\n  stepz: 2\n", ":3: training.stepz: unknown setting; did you mean 'training.steps'?"),
        ("training:\n  steps: x\n", ':2: training.steps: got "x", expected a whole number'),
        ("training:\n  steps: true\n", ":2: training.steps: got true, expected a whole number"),
        ("training: 5\n", ":1: training: a section, not a setting"),
        ("training:\n  steps: 1\n  steps: 2\n", ":3: training.steps: given twice in this file"),
        ("training:\n  steps: [1\nmesh: 2\n", ":3: not valid YAML: expected ',' or ']'"),
        ("names: {a: b}\n", ':1: names: got {"a": "b"}, expected a list of text'),
        ("run_dir: 5\n", ":1: run_dir: got 5, expected text or null"),
        ("- a\n", ": not a config"),
        ("model:\n  rope_scaling: {factor: x}\n", ':2: model.rope_scaling.factor: got "x", expected a number'),
    ],
)
def test_mistakes_in_yaml_name_the_file_and_line(tmp_path, text, message):
    file = in_yaml(tmp_path, text)
    assert error_of("--config", file).startswith(f"{file}{message}")


def test_a_required_setting_is_asked_for():
    assert error_of(of=sample) == "--source: needed, text"


def test_a_config_for_another_command_is_recognised(tmp_path):
    file = in_yaml(tmp_path, "model: {width: 3}\ntraining: {steps: 3}\n")
    message = error_of("--config", file, of=sample)
    assert message == f"{file} is a config for 'train', not for 'sample'"


def test_an_unknown_key_of_no_command_is_only_unknown(tmp_path):
    file = in_yaml(tmp_path, "source: a\npromt: b\n")
    assert error_of("--config", file, of=sample).endswith(":2: promt: unknown setting; did you mean 'prompt'?")


def test_a_missing_config_is_named():
    assert error_of("--config", "no/such.yaml") == "--config no/such.yaml: neither a file nor a bundled config"


def test_exit_codes_say_how_a_command_ended(capsys):
    def run(main: Any, *argv: str) -> tuple[int, str]:
        code = run_command(main, Train, command="train", commands=COMMANDS, presets=PRESETS, argv=argv)
        return code, capsys.readouterr().err

    def fail(error: BaseException) -> Any:
        def main(config: Train) -> None:
            raise error

        return main

    assert run(lambda config: None) == (0, "")
    assert run(lambda config: 3) == (3, "")
    assert run(fail(UserError("two\n  lines"))) == (2, "error: two lines\n")
    assert run(lambda config: None, "--nope", "1") == (2, "error: --nope: unknown setting\n")
    code, message = run(fail(SavedAfterSignal()))
    assert (code, message) == (75, "interrupted: saved; run the same command to resume\n")
    assert run(fail(KeyboardInterrupt())) == (130, "interrupted\n")
    code, message = run(fail(ZeroDivisionError("x")))
    assert code == 1
    assert message.startswith("Traceback")
    code, message = run(fail(BrokenPipeError("some socket")))
    assert code == 1
    assert message.startswith("Traceback"), "only a closed standard output is passed over"


def test_a_list_of_one_need_not_be_written_as_a_list(tmp_path):
    assert train("--names", "runs/mine").names == ("runs/mine",)
    assert train("--names=x: y").names == ("x: y",)
    assert train("--names", "12").names == ("12",)
    assert train("--names", "[runs/mine, other]").names == ("runs/mine", "other")
    assert train("--names", "[]").names == ()
    with pytest.raises(UserError, match=r"^mesh\.fsdp_stages: \[4\] must be two or more"):
        train("--mesh.fsdp_stages", "4")
    (tmp_path / "one.yaml").write_text("names: runs/mine\n")
    assert train("--config", str(tmp_path / "one.yaml")).names == ("runs/mine",)


@pytest.mark.parametrize("name, value", [("mesh.fsdp_stages", "four"), ("training.batch_ramp", "4")])
def test_a_list_of_one_must_be_of_its_type(name, value):
    with pytest.raises(UserError, match=rf"^--{name}: got .*{value}.*, expected a list of "):
        train(f"--{name}", value)


def test_a_fault_of_the_machine_is_no_traceback(tmp_path, capsys):
    def run(main: Any) -> tuple[int, str]:
        code = run_command(main, Train, command="train", commands=COMMANDS, presets=PRESETS, argv=[])
        return code, capsys.readouterr().err

    assert run(lambda config: tmp_path.read_text()) == (2, f"error: {tmp_path}: is a directory\n")

    def full(config: Train) -> None:
        with open("/dev/full", "w") as file:  # noqa: PTH123 - a device
            file.write("x")

    assert run(full) == (1, "error: no space left on device\n")


SCRIPT = """
import sys
from dataclasses import dataclass
from llama_jax.core.settings.command_line import run_command
@dataclass(frozen=True)
class Config:
    '''Print many lines.'''
    lines: int = 3
    '''How many lines.'''
def main(config):
    for number in range(config.lines):
        print(number)
code = run_command(main, Config, command="x", commands={"x": Config})
assert "jax" not in sys.modules and "numpy" not in sys.modules
sys.exit(code)
"""


@pytest.fixture
def script(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    return [sys.executable, str(tmp_path / "script.py")]


def test_help_is_quick_and_says_what_settings_mean(script):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = subprocess.run([*script, "--help"], capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert result.returncode == 0
    assert "How many lines. (type: int, default: 3)" in result.stdout
    assert after.ru_utime - before.ru_utime < 2, "0.3 s of a processor's time"


def test_help_describes_a_command_in_whole_sentences(capsys):
    for name in ("lora", "pretrain", "plan"):
        with pytest.raises(SystemExit):
            parse(REAL_COMMANDS[name], ["--help"], command=name, commands=REAL_COMMANDS, presets=REAL_PRESETS)
        text = " ".join(capsys.readouterr().out.split())
        assert f"{' '.join(str(REAL_COMMANDS[name].__doc__).split())} options:" in text


def test_help_shows_the_values_of_the_preset(capsys):
    with pytest.raises(SystemExit) as end:
        train("--model.size", "llama_7b", "--help")
    assert end.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "Size of the residual stream (D). (type: int, default: 4096)" in text
    assert "Path to a configuration file" not in text


def test_a_reader_that_went_away_is_no_complaint(script):
    process = subprocess.Popen([*script, "--lines", "100000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(timeout=240) == 1


def test_nothing_heavy_is_imported_to_parse(script):
    assert subprocess.run(script, capture_output=True).returncode == 0


DISTRIBUTED = """
import sys, time
from dataclasses import dataclass
import jax
from llama_jax.core.settings.command_line import run_command
@dataclass(frozen=True)
class Config:
    '''Fail in one of two processes.'''
    rank: int = 0
    '''Which process this is.'''
    port: int = 0
    '''Where they meet.'''
def main(config):
    jax.distributed.initialize(f"127.0.0.1:{config.port}", 2, config.rank)
    if config.rank == 1:
        raise ZeroDivisionError("one process fails")
    print("going on", flush=True)
    time.sleep(120)
sys.exit(run_command(main, Config, command="x", commands={"x": Config}))
"""


@pytest.mark.slow
def test_a_process_that_fails_ends_at_once_while_others_go_on(tmp_path):
    (tmp_path / "script.py").write_text(DISTRIBUTED)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(tmp_path / "script.py"), "--port", str(port), "--rank"]
    first = subprocess.Popen([*command, "0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        second = subprocess.run([*command, "1"], capture_output=True, text=True, timeout=240)
        assert second.returncode == 1
        assert "ZeroDivisionError: one process fails" in second.stderr
        assert first.stdout is not None
        assert first.stdout.readline() == b"going on\n"
        assert first.poll() is None
    finally:
        first.kill()
        first.communicate()


def test_a_second_word_is_found_by_the_settings_of_a_config_file(tmp_path):
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("alpha: 1\n")
    second.write_text("alpha: 1\nbeta: 2\n")

    @dataclass(frozen=True)
    class First:
        alpha: int = 0

    @dataclass(frozen=True)
    class Second(First):
        beta: int = 0

    commands = {"show": First, "show second": Second, "other": First}
    assert command_for("show", ["--config", str(first)], commands) == "show"
    assert command_for("show", ["--alpha", "2", f"--config={second}"], commands) == "show second"
    assert command_for("show", ["--config", str(tmp_path / "missing.yaml")], commands) == "show"
    assert command_for("other", ["--config", str(second)], commands) == "other"
