"""What the preview shows is what training gets."""

import json
from pathlib import Path

import command_runs
import pytest

from llama_jax.core.settings.command_line import parse
from llama_jax.data.config import DataConfig
from llama_jax.data.rows.loader import Loader
from llama_jax.data.rows.mixture import open_mixture
from llama_jax.data.tokenizers import load_tokenizer


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    """`short.jsonl` with two bad lines of 200, `long.jsonl`, and a tokenizer."""
    folder = tmp_path_factory.mktemp("sources")
    short = [json.dumps({"text": f"short [text] number {number}"}) for number in range(200)]
    short[50], short[150] = '{"body": 1}', "]"
    (folder / "short.jsonl").write_text("\n".join(short) + "\n")
    text = " ".join(f"word {number}" for number in range(300))
    (folder / "long.jsonl").write_text("".join(json.dumps({"text": f"{n} {text}"}) + "\n" for n in range(20)))
    command = ("tokenizer", "--data.source", "pydoc", "--vocab_size", 400, "--output", folder / "tokenizer.model")
    assert command_runs.call(*command) == 0
    return folder


@pytest.fixture
def arguments(sources) -> list[object]:
    settings = {
        "model.size": "tiny",
        "data.mixture": json.dumps([[f"{sources}/short.jsonl", 3], [f"{sources}/long.jsonl", 1]]),
        "data.tokenizer": sources / "tokenizer.model",
        "data.sequence_length": 32,
        "data.max_bad_fraction": 0.5,
        "data.streams": 8,
        "training.batch_size": 16,
        "training.steps": 50,
        "measured_tokens": 12_800,
        "run_dir": sources / "run",
    }
    return [part for name, value in settings.items() for part in (f"--{name}", value)]


def previewed(capfd, *arguments: object) -> tuple[str, dict]:
    """What is printed, and the report."""
    assert command_runs.call("preview", *arguments, "--json") == 0, capfd.readouterr().err
    output = capfd.readouterr().out
    return output, json.loads(output.splitlines()[-1])


def test_examples_are_the_first_rows_of_training(sources, arguments, capfd) -> None:
    _, report = previewed(capfd, *arguments, "--examples", 16)
    tokenizer = load_tokenizer(sources / "tokenizer.model")
    mixture = tuple((f"{sources}/{name}.jsonl", weight) for name, weight in (("short", 3.0), ("long", 1.0)))
    data = DataConfig(mixture=mixture, sequence_length=32, max_bad_fraction=0.5, streams=8)
    training, _ = open_mixture(data).hold_out(data.validation_fraction)
    loader = Loader(training, tokenizer, data, seed=0, batch_size_at=lambda step: 16)
    rows, _ = next(loader.start())
    loader.close()
    for example, tokens, targets in zip(report["examples"], rows["tokens"], rows["targets"], strict=True):
        shown = "".join(text for segment in example["segments"] for text, _ in segment["pieces"])
        ids = [int(tokens[0])]
        for token, target in zip(tokens.tolist()[1:], targets.tolist()[:-1], strict=True):
            ids += [target] if token == target else [target, token]
        ids.append(int(targets[-1]))
        text = tokenizer.decode(ids)
        without_controls = shown.replace("<s>", "").replace("</s>", "")
        assert without_controls.replace(" ", "") == text.replace(" ", "")
        assert ("number" in text) == example["source"].endswith("short.jsonl") or "word" not in text


def test_sources_lengths_and_losses_are_told(sources, arguments, capfd) -> None:
    output, report = previewed(capfd, *arguments)
    short, long = (report["sources"][f"{sources}/{name}.jsonl"] for name in ("short", "long"))
    assert (short["share"], long["share"]) == (0.75, 0.25)
    assert short["share_of_rows_read"] == pytest.approx(0.75, abs=0.02)
    assert (short["documents"], long["documents"], report["held_out_documents"]) == (196, 19, 5)
    assert report["tokens_in_training"] == 50 * 16 * 32
    assert short["tokens_in_training"] + long["tokens_in_training"] == 50 * 16 * 32
    tokenizer = load_tokenizer(sources / "tokenizer.model")
    texts = [json.loads(line)["text"] for line in (sources / "long.jsonl").read_text().splitlines()]
    lengths = sorted(len(tokenizer.encode(text, bos=True, eos=True)) for text in texts)
    assert lengths[0] <= long["length_percentiles"]["50"] <= lengths[-1]
    assert long["epochs"] == pytest.approx(50 * 16 * 32 / 4 / (19 * (lengths[9] - 1)), rel=0.01)
    assert (long["longer_than_a_row_share"], short["longer_than_a_row_share"]) == (1.0, 0.0)
    assert long["is_exact"] and short["is_exact"]
    assert report["rows"]["rows"] == 400
    assert (report["rows"]["padding_share"], report["rows"]["loss_share"]) == (0.0, 1.0)
    assert 0.1 < report["rows"]["segments_split_share"] < 0.9
    assert "100.0% of the tokens bear loss, 0.0% are padding" in output


def test_what_cannot_be_used_is_counted_by_reason(arguments, capfd) -> None:
    output, report = previewed(capfd, *arguments)
    (short, _) = report["sources"].values()
    kinds = set(short["dropped_of_measured"])
    assert kinds <= {"missing_field", "not_json"}
    assert kinds
    assert set(report["dropped"]) == kinds
    assert all(f"{count:,} {reason}" in output for reason, count in report["dropped"].items())


def test_tokens_that_bear_loss_stand_in_brackets_and_the_rest_is_cut(arguments, capfd) -> None:
    output, _ = previewed(capfd, *arguments, "--examples", 2, "--characters", 20)
    assert "<s>⟦" in output
    assert "\x1b" not in output
    assert " more characters" in output


def test_the_text_cannot_steer_the_terminal(sources, arguments, tmp_path, capfd) -> None:
    (tmp_path / "text.jsonl").write_text('{"text": "a\\u001b[2Jb\\u202ec\\u0007"}\n' * 40)
    shown, _ = previewed(
        capfd, *arguments, "--data.mixture", json.dumps([[f"{tmp_path}/text.jsonl", 1]]), "--examples", 1
    )
    text = "\n".join(shown.splitlines()[:-1])
    assert r"a\x1b[2Jb\u202ec\x07" in text
    assert not {"\x1b", "\u202e", "\x07"} & set(text)


def test_the_tokenizer_is_that_of_the_run_and_else_is_trained(sources, arguments, tmp_path, capfd) -> None:
    place = arguments.index("--data.tokenizer")
    without = arguments[:place] + arguments[place + 2 :]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "tokenizer.model").write_bytes((sources / "tokenizer.model").read_bytes())
    _, report = previewed(capfd, *without, "--run_dir", tmp_path / "run")
    assert report["vocab_size"] == 400
    _, report = previewed(capfd, *without, "--model.vocab_size", 300)
    assert (report["vocab_size"], report["tokenizer"]) == (300, "trained on this text")
    assert command_runs.call("preview", *arguments, "--model.vocab_size", 300) == 2
    assert "has 400 tokens, more than model.vocab_size 300" in capfd.readouterr().err


def test_prepared_shards_bring_their_tokenizer(sources, tmp_path, capfd) -> None:
    folder = tmp_path / "prepared"
    prepare = ("--data.source", sources / "long.jsonl", "--data.tokenizer", sources / "tokenizer.model")
    assert command_runs.call("prepare", *prepare, "--output", folder) == 0
    ask = ("--model.size", "tiny", "--data.source", folder, "--data.streams", 8, "--run_dir", tmp_path / "run")
    output, report = previewed(capfd, *ask, "--measured_tokens", 5000)
    assert report["tokenizer"] == str(folder)
    assert report["sources"][str(folder)]["documents"] == 19
    assert "word" in output


@pytest.mark.parametrize("name", ["tiny/pretrain", "pretrain_tinyllama", "pretrain_7b"])
def test_the_configs_of_pretrain_fit(name) -> None:
    commands = command_runs.COMMANDS
    config = parse(
        commands["preview"], ["--config", name], command="preview", commands=commands, presets=command_runs.PRESETS
    )
    assert config.data.mixture or config.data.source != "pydoc" or name == "tiny/pretrain"
    assert config.training.steps > 1
