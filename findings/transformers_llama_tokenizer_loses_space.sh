#!/usr/bin/env bash
# transformers: with tokenizer_class LlamaTokenizer a tokenizer.json is not used as it is: a leading space is lost.
#
# Versions:  transformers 5.24.0, tokenizers 0.23.3.
# Behaviour: a tokenizer.json whose normalizer prepends "▁", as in the files of LLaMA 1 and 2, encodes " one" as ▁ ▁ o n
#            e. AutoTokenizer, told by tokenizer_class to make a LlamaTokenizer, replaces the normalizer and the
#            pre-tokenizer: ▁ o n e, which decodes to "one". A PreTrainedTokenizerFast gives what the file says.
# Seen:      LlamaTokenizer ['▁', 'o', 'n', 'e'], PreTrainedTokenizerFast ['▁', '▁', 'o', 'n', 'e']
# Means:     the same file tokenizes differently in transformers and in the tokenizers library, which matters for
#            indented code and for prompts that are continued. Compare token ids before comparing logits between tools.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet transformers==5.24.0 tokenizers==0.23.3
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import AutoTokenizer

pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abcdefghijklmnopqrstuvwxyz"]
vocabulary = {piece: number for number, piece in enumerate(pieces)}
file = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
file.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
file.decoder = decoders.Sequence(
    [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
)
seen = {}
for name in ("LlamaTokenizer", "PreTrainedTokenizerFast"):
    Path(name).mkdir()
    file.save(f"{name}/tokenizer.json")
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    Path(name, "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name, **special}))
    Path(name, "config.json").write_text(json.dumps({"model_type": "llama"}))
    loaded = AutoTokenizer.from_pretrained(name)
    ids = loaded(" one", add_special_tokens=False)["input_ids"]
    seen[name] = loaded.convert_ids_to_tokens(ids)
    print(name, seen[name], repr(loaded.decode(ids)))
assert seen["PreTrainedTokenizerFast"] == file.encode(" one").tokens == ["▁", "▁", "o", "n", "e"]
assert seen["LlamaTokenizer"] == ["▁", "o", "n", "e"], "LlamaTokenizer keeps the leading space now"
PYTHON
