"""The ledger of a position, computed anew from the documents alone."""

from llama_jax.data.rows.ledger import entered
from llama_jax.data.rows.packing import Epochs, token_ids
from llama_jax.data.rows.positions import SourcePosition
from llama_jax.data.sources.documents import BadRecordError, Documents
from llama_jax.data.tokenizers import Tokenizer


def ledger_at(
    documents: Documents, tokenizer: Tokenizer, epochs: Epochs, stream: tuple[int, int], position: SourcePosition
) -> int:
    """What the ledger of a position must be. Reads all documents up to there.

    Args:
        stream: Number of the stream, from 0, and of how many.
    """
    ledger = 0
    for place in range(position.documents):
        number = epochs[stream[0] + place * stream[1]]
        try:
            pairs = len(token_ids(documents[number], tokenizer, number)) - 1
        except BadRecordError:
            continue
        is_last = place == position.documents - 1
        ledger = entered(ledger, number, 0, position.offset if is_last and position.offset else pairs)
    return ledger
