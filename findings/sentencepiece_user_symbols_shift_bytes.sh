#!/usr/bin/env bash
# sentencepiece: user_defined_symbols are numbered before the byte pieces, so bytes are no longer at ids 3 to 258.
#
# Versions:  sentencepiece 0.2.3.
# Behaviour: trained with byte_fallback and two user-defined symbols, the model has them at ids 3 and 4 and <0x00> at 5;
#            without them <0x00> is at 3, as in LLaMA's tokenizer.
# Seen:      0 symbols: <0x00> is 3, 2 symbols: <0x00> is 5
# Means:     code that computes a byte's id as 3 + byte, as decoders for LLaMA models do, produces other bytes with such
#            a tokenizer, and without an error. Look the ids up by piece, or add control tokens after training, at the
#            end.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet sentencepiece==0.2.3
"$folder/venv/bin/python" - <<'PYTHON'
import io

import sentencepiece

seen = []
for symbols in ([], ["<|im_start|>", "<|im_end|>"]):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the quick brown fox jumps over the lazy dog and runs away"] * 50),
        model_writer=model,
        model_type="bpe",
        vocab_size=300,
        byte_fallback=True,
        user_defined_symbols=symbols,
        minloglevel=2,
    )
    tokenizer = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    seen.append(tokenizer.piece_to_id("<0x00>"))
    print(f"{len(symbols)} symbols: <0x00> is {seen[-1]};", [tokenizer.id_to_piece(number) for number in range(7)])
assert seen == [3, 5], "the byte pieces lie elsewhere now"
PYTHON
