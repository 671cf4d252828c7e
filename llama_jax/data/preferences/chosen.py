"""The better answers of pairs as answers to learn, for the stage of a pipeline that comes before any comparing."""

from collections.abc import Iterable

from llama_jax.data.instructions.examples import InstructionData
from llama_jax.data.instructions.records import Conversation
from llama_jax.data.preferences.records import compared, kind_of_fields
from llama_jax.data.sources.record_text import Record

_PAIRS = "pairs"


class InstructionOrPairData(InstructionData):
    """Examples of instructions and answers, also of pairs: the chosen answer is learned, the other is not read."""

    def format_of(self, fields: Iterable[str]) -> str | None:
        """The format whose fields are all there."""
        fields = list(fields)  # pairs first: their prompt may look like a conversation
        return _PAIRS if kind_of_fields(fields) == _PAIRS else super().format_of(fields)

    def conversation(self, record: Record, form: str) -> Conversation | str:
        """The conversation in a record."""
        if form != _PAIRS:
            return super().conversation(record, form)
        found = compared(record, _PAIRS)
        return (*found.prompt, *found.answers[0])

    def prompt_of(self, record: Record) -> Conversation | str:
        """What is asked in a record, the same as where pairs are compared."""
        if self.form(record) == _PAIRS:
            return compared(record, _PAIRS).prompt
        return super().prompt_of(record)
