"""Which instructions and which instances are kept: the rules of the two papers' code, each with the name it is counted
by."""

from collections.abc import Sequence

from llama_jax.instruct.config import FilterConfig, FormName
from llama_jax.instruct.languages import ALPACA_WORDS, Language, blacklist_pattern
from llama_jax.instruct.tasks import Instance

MAX_INSTANCES = 5


class InstructionFilter:
    """The rules that look at an instruction alone, in the order of Self-Instruct's code."""

    def __init__(self, config: FilterConfig, language: Language, form: FormName) -> None:
        self._config, self._language = config, language
        published = language.blacklist if form == "original" else (*language.blacklist, *ALPACA_WORDS)
        self._blacklist = blacklist_pattern(published if config.blacklist is None else config.blacklist)

    def reason(self, instruction: str) -> str | None:
        """Why an instruction is dropped, or None."""
        if not instruction.strip():
            return "empty"
        length = self._language.length(instruction)
        if length < self._config.min_words:
            return "too_short"
        if length > self._config.max_words:
            return "too_long"
        if self._blacklist.search(instruction):
            return "blacklist"
        if instruction.startswith(self._language.programs):
            return "asks_for_a_program"
        return self._language.bad_start(instruction)


def kept_instances(instances: Sequence[Instance]) -> tuple[tuple[Instance, ...], dict[str, int]]:
    """The instances of a task that are kept, and how many were dropped by reason.

    One input with two outputs drops all: the task is not one with an answer.
    """
    dropped: dict[str, int] = {}
    kept: list[Instance] = []
    for instance in instances:
        reason = _instance_reason(instance)
        if reason is None and instance in kept:
            reason = "duplicate"
        if reason is None:
            kept.append(instance)
        else:
            dropped[reason] = dropped.get(reason, 0) + 1
    inputs = [instance.input for instance in kept if instance.input]
    if len(set(inputs)) < len(inputs):
        return (), dropped | {"conflicting_outputs": len(kept)}
    if len(kept) > MAX_INSTANCES:
        dropped["more_than_five"] = len(kept) - MAX_INSTANCES
    return tuple(kept[:MAX_INSTANCES]), dropped


def _instance_reason(instance: Instance) -> str | None:
    if not instance.output.strip():
        return "empty_output"
    if instance.input == instance.output:
        return "input_is_output"
    if instance.input.rstrip().endswith((":", "：")) or instance.output.rstrip().endswith((":", "：")):
        return "ends_with_colon"
    return None
