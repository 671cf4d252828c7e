"""Turn a model from one format into another, and prove it: `python -m llama_jax.convert`."""

if __name__ == "__main__":
    from llama_jax.__main__ import main

    main("convert")

import json
import sys

from llama_jax.checkpoints.config import ConvertConfig
from llama_jax.checkpoints.conversion import convert_model


def convert(config: ConvertConfig) -> None:
    """Write the model in the format asked for, and beside it `conversion_report.json`: what was converted, and how far
    its logits are from those of the source."""

    def say(text: str) -> None:
        print(text, file=sys.stderr if config.json else sys.stdout, flush=True)

    report = convert_model(config, say)
    if config.json:
        print(json.dumps(report))
