"""Record the ids that llama.cpp gives texts for each name of a splitting, into `llama_cpp_words.json`.

pip install xllamacpp gguf && python tests/oracle/record_llama_cpp_words.py
"""

import importlib
import json
import tempfile
import urllib.request
from pathlib import Path

import gguf
import numpy as np
from small_words import MERGES, NAMES, TEXTS, TOKENS

xllamacpp = importlib.import_module("xllamacpp")  # needed by this script alone, so no extra declares it

WIDTH = 64


def write_model(path: str, pre: str) -> None:
    """A LLaMA of one layer, all its weights 0."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    if pre != "nameless":
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, *[1] * (len(TOKENS) - 2)])
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    matrices = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    shapes = {f"blk.0.{name}.weight": (WIDTH, WIDTH) for name in matrices}
    shapes |= dict.fromkeys(("blk.0.attn_norm.weight", "blk.0.ffn_norm.weight", "output_norm.weight"), (WIDTH,))
    for name, shape in {"token_embd.weight": (len(TOKENS), WIDTH), **shapes}.items():
        writer.add_tensor(name, np.zeros(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def ids_of(pre: str) -> dict[str, list[int]]:
    with tempfile.TemporaryDirectory() as folder:
        write_model(f"{folder}/model.gguf", pre)
        params = xllamacpp.CommonParams()
        params.model.path, params.n_ctx, params.warmup = f"{folder}/model.gguf", 64, False
        server = xllamacpp.Server(params)
        found = {}
        for text in TEXTS:
            asked = json.dumps({"content": text, "add_special": True, "parse_special": False}).encode()
            with urllib.request.urlopen(f"{server.listening_address}/tokenize", asked) as answer:
                found[text] = json.load(answer)["tokens"]
        return found


if __name__ == "__main__":
    recorded = {"version": xllamacpp.__version__, "ids": {name: ids_of(name) for name in NAMES}}
    target = Path(__file__).with_name("llama_cpp_words.json")
    lines = [f"  {json.dumps(name)}: {json.dumps(found)}" for name, found in recorded["ids"].items()]
    version = json.dumps(recorded["version"])
    target.write_text(f'{{\n "version": {version},\n "ids": {{\n' + ",\n".join(lines) + "\n }\n}\n")
    print(f"{target}: xllamacpp {xllamacpp.__version__}")
