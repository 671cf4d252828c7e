"""`llama-jax <command> …` and `python -m llama_jax <command> …`."""

import contextlib
import importlib
import os
import signal
import sys
import threading
from typing import NoReturn

from llama_jax.core.processes.signals import ending_on_interrupt


def main(name: str | None = None) -> NoReturn:
    """Run a command, and exit.

    Args:
        name: the command that all arguments are for; None: the first argument names it.
    """
    try:
        with ending_on_interrupt() as interrupted:
            code = _code(name, interrupted)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # too late: what there was to do is done
    except KeyboardInterrupt:  # outside of the command
        print("interrupted", file=sys.stderr)
        code = 130
    if code == 130 or (code and "jax" in sys.modules):
        # Not by `sys.exit`: something may still be computing, in threads that fault when Python is taken down.
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        os._exit(code)
    sys.exit(code)


def _code(name: str | None, interrupted: threading.Event) -> int:
    """Run a command; gives its exit code. What is imported is so once Ctrl-C is heard."""
    from llama_jax.config import COMMANDS, DEFAULT_CONFIGS, PRESETS, check_paths, supervised
    from llama_jax.core.errors import nearest
    from llama_jax.core.settings.command_line import run_command
    from llama_jax.core.settings.parser import command_for

    if name is None:
        name = sys.argv[1] if len(sys.argv) > 1 else "--help"
        if name in ("-h", "--help"):
            print("usage: llama-jax <command> [--config FILE] [--section.field VALUE ...]\n\ncommands:")
            width = max(map(len, COMMANDS)) + 2
            for command, config in COMMANDS.items():
                print(f"  {command:<{width}}{' '.join((config.__doc__ or '').split()).split('. ')[0].rstrip('.')}")
            print("\nllama-jax <command> --help lists what the command can be told.")
            return 0
        if name not in COMMANDS:
            there_are = f"there are {', '.join(COMMANDS)}"
            print(f"error: {name}: unknown command; {there_are}{nearest(name, COMMANDS)}", file=sys.stderr)
            return 2
        del sys.argv[1]
    command = name
    if len(sys.argv) > 1 and f"{command} {sys.argv[1]}" in COMMANDS:
        name = f"{command} {sys.argv.pop(1)}"
    else:
        name = command_for(command, sys.argv[1:], COMMANDS)

    if len(sys.argv) == 1 and name in DEFAULT_CONFIGS:
        print(f"no arguments: taking those of --config {DEFAULT_CONFIGS[name]}", flush=True)
        sys.argv += ["--config", DEFAULT_CONFIGS[name]]

    # The command's own file is imported once the command line is read: --help must not wait for JAX.
    def run(config: object) -> int | None:
        if (code := supervised(config, [*name.split(), *sys.argv[1:]])) is not None:
            return code
        check_paths(config)
        try:
            return getattr(importlib.import_module(f"llama_jax.{command}"), command)(config)
        except Exception:
            if interrupted.is_set():  # which libraries make errors of their own of
                raise KeyboardInterrupt from None
            raise

    return run_command(run, COMMANDS[name], command=name, commands=COMMANDS, presets=PRESETS)


if __name__ == "__main__":
    main()
