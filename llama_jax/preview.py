"""Show what a model will be trained on: `python -m llama_jax.preview`."""

if __name__ == "__main__":
    from llama_jax.__main__ import main

    main("preview")

import functools
import json
from typing import Any

from etils import epath

from llama_jax.checkpoints.opening import find_model
from llama_jax.checkpoints.weight_reading import open_weights
from llama_jax.data.config import ShownConfig
from llama_jax.data.instructions.inspection import examples_report, examples_report_lines, first_rows
from llama_jax.data.instructions.templates import Layout
from llama_jax.data.rows.display import print_rows
from llama_jax.data.rows.inspection import documents_report, documents_report_lines, read_first_rows
from llama_jax.data.rows.mixture import Mixture, open_mixture
from llama_jax.data.rows.streams import Pipeline
from llama_jax.data.tokenizers import Tokenizer, load_tokenizer, train_tokenizer
from llama_jax.rl.config import RewardLearningConfig
from llama_jax.rl.prompts import PromptData
from llama_jax.runs.starting import tokenizer_of
from llama_jax.supervised.config import InstructionConfig, PretrainConfig
from llama_jax.supervised.instructions import open_instructions
from llama_jax.supervised.preference_config import PreferenceConfig
from llama_jax.supervised.preferences import open_preferences

_say = functools.partial(print, flush=True)


def preview(config: Any) -> None:
    """Print the first rows of training and a report on the data; nothing is written."""
    show: ShownConfig = config
    if isinstance(config, PretrainConfig):
        report = _documents(config, show)
    else:
        report = _prompts(config, show) if isinstance(config, RewardLearningConfig) else _examples(config, show)
    if show.json:
        print(json.dumps(report))


def _tokenizer_of_model(config: InstructionConfig | PreferenceConfig | RewardLearningConfig) -> Tokenizer:
    path = find_model(config.model, _say)
    return tokenizer_of(config, open_weights(path, step=config.step, say=_say), path, config.data.template_date)


def _prompts(config: RewardLearningConfig, show: ShownConfig) -> dict[str, Any]:
    tokenizer = _tokenizer_of_model(config)
    data = PromptData(config.data, Layout(config.data.template, tokenizer), config.seed, _say)
    first = data.numbered(0, show.examples)
    shown = print_rows([("the prompts", prompt.row()) for prompt in first], tokenizer, show.characters)
    for number, prompt in enumerate(first):
        print(f"rewards are told of row {number}: {json.dumps(prompt.fields, default=str)[: show.characters]}")
    print(data.description())
    return data.report() | {"examples_shown": [{"segments": segments} for _, segments in shown]}


def _examples(config: InstructionConfig | PreferenceConfig, show: ShownConfig) -> dict[str, Any]:
    tokenizer = _tokenizer_of_model(config)
    if isinstance(config, PreferenceConfig):
        loader = open_preferences(config, tokenizer, None, _say)
    else:
        loader = open_instructions(config, tokenizer, None, _say)
    rows = [("the first epoch", row) for row in first_rows(loader, show.examples)]
    measured_rows = -(-show.measured_tokens // config.data.sequence_length)
    report = examples_report(loader, tokenizer, config.training.batch_size, measured_rows)
    shown = print_rows(rows, tokenizer, show.characters)
    print("\n".join(examples_report_lines(report)))
    return report | {"examples_shown": [{"segments": segments} for _, segments in shown]}


def _documents(config: PretrainConfig, show: ShownConfig) -> dict[str, Any]:
    mixture, held_out = open_mixture(config.data).hold_out(config.data.validation_fraction)
    tokenizer, name = _tokenizer(config, mixture)
    pipeline, steps = Pipeline(mixture, tokenizer, config.data, config.seed), config.training.steps
    read = max(show.examples, -(-show.measured_tokens // config.data.sequence_length))
    batch_size_at, rows = config.training.batch_size_at, config.training.rows_until(steps)
    first = read_first_rows(pipeline, batch_size_at, rows=read, examples=show.examples, say=_say)
    report = documents_report(pipeline, first, steps=steps, rows=rows, measured_documents=show.measured_documents)
    report |= {"tokenizer": name, "held_out_documents": len(held_out)}
    shown = print_rows(first.examples, tokenizer, show.characters)
    print("\n".join(documents_report_lines(report)))
    return report | {"examples": [{"source": source, "segments": segments} for source, segments in shown]}


def _tokenizer(config: PretrainConfig, mixture: Mixture) -> tuple[Tokenizer, str]:
    """The tokenizer that training would use, and what it is."""
    size, kept = config.model.vocab_size, epath.Path(config.run_dir) / "tokenizer.model"

    def own() -> Tokenizer:
        if kept.exists():
            return load_tokenizer(kept)
        _say(f"training a tokenizer of {size} pieces, as pretrain would")
        return train_tokenizer(mixture.texts(mixture.bad_records(config.data)), size)

    name = config.data.tokenizer or mixture.tokenizer_directory or (kept if kept.exists() else "trained on this text")
    return mixture.tokenizer(config.data.tokenizer, size, own), str(name)
