"""`llama-jax <command> …` and `python -m llama_jax <command> …`."""

import importlib
import sys

from llama_jax.config import COMMANDS
from llama_jax.core.errors import nearest


def main() -> None:
    """Run the command named first, with the arguments behind it."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print("usage: llama-jax <command> [--config FILE] [--section.field VALUE ...]\n\ncommands:")
        for command, config in COMMANDS.items():
            print(f"  {command:<12}{(config.__doc__ or '').split('. ')[0].strip().rstrip('.')}")
        print("\nllama-jax <command> --help lists what the command can be told.")
        return
    if name not in COMMANDS:
        there_are = f"there are {', '.join(COMMANDS)}"
        print(f"error: {name}: unknown command; {there_are}{nearest(name, COMMANDS)}", file=sys.stderr)
        sys.exit(2)
    del sys.argv[1]
    importlib.import_module(f"llama_jax.{name}").main()


if __name__ == "__main__":
    main()
