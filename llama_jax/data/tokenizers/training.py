"""Training a new tokenizer on texts."""

import io
import re
from collections.abc import Iterable, Iterator

from llama_jax.core.errors import UserError
from llama_jax.data.tokenizers.llama2c import FIRST_PIECE
from llama_jax.data.tokenizers.sentencepiece_model import SentencePieceTokenizer

_SMALLEST_VOCABULARY = FIRST_PIECE + 5
_SENTENCE_BYTES = 4192  # sentencepiece silently drops longer training sentences
_RESERVED_BY_TRAINER = "\u2585"  # sentencepiece's mark for unknown pieces: it drops a sentence that holds one


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> SentencePieceTokenizer:
    """Train byte-pair encoding with LLaMA's settings (arXiv:2302.13971, section 2.1): numbers split into digits,
    unknown characters into bytes, text left as it is. The same texts give the same bytes.

    Args:
        texts: Documents. They are split into lines; all lines are held in memory while training.
        vocab_size: Number of ids to make, with 3 control tokens and 256 bytes among them.

    Raises:
        UserError: there is no text, or the vocabulary is too small or too large for it; and what `texts` raises.
    """
    if vocab_size < _SMALLEST_VOCABULARY:
        raise UserError(
            f"vocab_size: {vocab_size} is too small; control tokens and bytes alone take {FIRST_PIECE}, "
            f"so use at least {_SMALLEST_VOCABULARY}"
        )
    import sentencepiece  # when first used: commands that only print help start without it

    model, failures = io.BytesIO(), []
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_noting(_sentences(texts), failures),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            byte_fallback=True,
            split_digits=True,
            character_coverage=0.99995,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            add_dummy_prefix=True,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            max_sentence_length=_SENTENCE_BYTES,
            num_threads=2,  # recorded in the model file, so it must not follow the machine
            minloglevel=2,
        )
    except RuntimeError as error:
        for failure in failures:
            raise failure from None
        raise _training_error(vocab_size, str(error)) from error
    return SentencePieceTokenizer(model.getvalue())


def _noting(sentences: Iterator[str], failures: list[Exception]) -> Iterator[str]:
    """The same; what they raise is kept, of which sentencepiece makes a message of its own."""
    try:
        yield from sentences
    except Exception as error:
        failures.append(error)
        raise


def _sentences(texts: Iterable[str]) -> Iterator[str]:
    """Lines, the long ones cut (at a space where there is one), so that sentencepiece drops none."""
    longest = _SENTENCE_BYTES // 4  # characters; UTF-8 takes at most 4 bytes for one
    for text in texts:
        for line in text.replace(_RESERVED_BY_TRAINER, "\n").split("\n"):
            while len(line) > longest:
                end = line.rfind(" ", 1, longest)
                end = longest if end < 0 else end
                yield line[:end]
                line = line[end:]
            if line:
                yield line


def _training_error(vocab_size: int, message: str) -> Exception:
    """What sentencepiece's error means to the user; the error itself when it is not a known one."""
    if largest := re.search(r"too high .* a value <= (\d+)", message):
        return UserError(f"vocab_size: {vocab_size} is too large for this text; at most {largest[1]} fit")
    if smallest := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return UserError(
            f"vocab_size: {vocab_size} is too small for this text; its characters need at least {smallest[1]}"
        )
    if "sentences_.empty()" in message:
        return UserError("no text to train a tokenizer on; give documents with at least one non-empty line")
    return RuntimeError(message)
