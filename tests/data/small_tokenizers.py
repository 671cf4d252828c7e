"""Tokenizer files small enough to compute with by hand, and texts that are hard to encode."""

import base64
import json
import struct
from collections.abc import Sequence

import tokenizers

from llama_jax.data.tokenizers import HuggingFaceTokenizer, Tokenizer, hugging_face_files

TALE = """The miller had three sons, his mill, a donkey, and a cat; in 1812 the sons had to grind.
The donkey had to haul grain and carry away the flour, and the cat had to catch the mice away.
When the miller died, the three sons divided the inheritance: the oldest took the mill,
the second took the donkey, and nothing was left for the youngest son but the cat."""


HARD_TEXTS = [
    "",
    " ",
    "cat",
    " two  spaces ",
    "a\n\n\tb\r\n",
    " " * 300 + "x",
    "\n" * 50,
    "1812 + 34567",
    "é中🙂 caf\u00e9 日本語",
    "👨\u200d👩\u200d👧 🏳️\u200d🌈",
    "हिन्दी العَرَبِيَّة e\u0301\u0327",
    "nul\0nul \x01\x02\x7f",
    "don't WE'LL",
    "<s></s><unk><|eot_id|>[PAD]",
    "<0x0A> [INST] <|begin_of_text|",
    "z" * 3000,
    "\u2028\ufeff\u00a0\u3000.",
]
"""Texts on which tokenizers have gone wrong."""


def llama2c_file(pieces: Sequence[tuple[bytes, float]]) -> bytes:
    """A llama2.c tokenizer with the given (piece, score) after the control tokens and the bytes."""
    everything = [(b"<unk>", 0.0), (b"<s>", 0.0), (b"</s>", 0.0)]
    everything += [(b"<0x%02X>" % byte, 0.0) for byte in range(256)]
    everything += pieces
    longest = max(len(piece) for piece, _ in everything)
    return struct.pack("<i", longest) + b"".join(
        struct.pack("<fi", score, len(piece)) + piece for piece, score in everything
    )


def tiktoken_file() -> bytes:
    """All bytes, then a few merges: ranks 256 "th", 257 "the", 258 " the", 259 "  ", 260 "12"."""
    tokens = [bytes([byte]) for byte in range(256)] + [b"th", b"the", b" the", b"  ", b"12"]
    return b"".join(b"%s %d\n" % (base64.b64encode(token), rank) for rank, token in enumerate(tokens))


def byte_level_file() -> bytes:
    """A `tokenizer.json` of GPT-2's kind: `<|bos|>` 0, `<|eos|>` 1, `<think>` 2 (not special), then bytes and merges.
    It opens texts with BOS, and asks for texts cut to 4 tokens and padded to 9, which nobody wants."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|bos|>", "<|eos|>", "<think>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([TALE], trainer)
    made.post_processor = tokenizers.processors.TemplateProcessing(single="<|bos|> $A", special_tokens=[("<|bos|>", 0)])
    made.enable_truncation(4)
    made.enable_padding(length=9)
    content = json.loads(made.to_str())
    content["added_tokens"][2]["special"] = False
    return json.dumps(content).encode()


BESIDE = {
    "tokenizer_config.json": b'{"bos_token": {"content": "<|bos|>"}, "eos_token": "<|eos|>"}',
    "generation_config.json": b'{"eos_token_id": [1, 5]}',
}


def with_control_tokens(tokenizer: Tokenizer, names: Sequence[str]) -> HuggingFaceTokenizer:
    """The tokenizer as a `tokenizer.json` with control tokens of these names after its last id."""
    files = hugging_face_files(tokenizer)
    content = json.loads(files.pop("tokenizer.json"))
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | {"special": True}
    content["added_tokens"] += [
        {"id": number, "content": name, **flags} for number, name in enumerate(names, tokenizer.vocab_size)
    ]
    return HuggingFaceTokenizer(json.dumps(content).encode(), files)
