"""Record what Hugging Face transformers makes of the small directories of published models, into `published.npz`: a few
logits and the ids of a few texts, and the small tokenizers themselves.

pip install torch transformers sentencepiece && python tests/oracle/record_published.py
"""

import json
import tempfile
import warnings
from pathlib import Path

import numpy as np
import sentencepiece
import tokenizers
import torch
import transformers
from published_cases import CASES
from published_models import TEXTS, TOKENS, picked, small
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

TALE = """The miller had three sons, his mill, a donkey, and a cat; in 1812 the sons had to grind.
The donkey had to haul grain and carry away the flour, and the cat had to catch the mice away.
When the miller died, the three sons divided the inheritance: the oldest took the mill."""
LLAMA3_SPLIT = "|".join(
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)


def sentencepiece_model() -> bytes:
    """A BPE model with the settings of Llama 2's."""
    with tempfile.TemporaryDirectory() as folder:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(TALE.split("\n")),
            model_prefix=f"{folder}/m",
            vocab_size=320,
            model_type="bpe",
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            split_digits=True,
            allow_whitespace_only_pieces=True,
            minloglevel=2,
        )
        return Path(folder, "m.model").read_bytes()


def byte_level(special: list[str], split: str | None, bos: str | None) -> bytes:
    """A tokenizer.json with its special tokens last, as Llama 3's, or first, as SmolLM2's, where none opens a text."""
    made = tokenizers.Tokenizer(models.BPE(ignore_merges=split is not None))
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None)
    steps = (
        [pre_tokenizers.Split(Regex(split), "isolated")] if split else [pre_tokenizers.Digits(individual_digits=True)]
    )
    made.pre_tokenizer = pre_tokenizers.Sequence([*steps, level])
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[] if bos else special,
        show_progress=False,
    )
    made.train_from_iterator([TALE], trainer)
    made.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    if bos:
        made.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, made.token_to_id(bos))]
        )
    return made.to_str().encode()


def as_transformers_4_wrote(content: bytes) -> bytes:
    """The tokenizer.json of a sentencepiece model, spaces made by a normalizer."""
    made = tokenizers.Tokenizer.from_buffer(content)
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    values = json.loads(made.to_str()) | {"pre_tokenizer": None}
    return json.dumps(values).encode()


def small_tokenizers() -> dict[str, bytes]:
    """Their files, and the number of tokens of each kind."""
    files = {"tokenizer.model": sentencepiece_model()}
    names = [
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eom_id|>",
        "<|eot_id|>",
    ]
    files["llama3.json"] = byte_level(names, LLAMA3_SPLIT, names[0])
    files["byte-level.json"] = byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], None, None)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "tokenizer.model").write_bytes(files["tokenizer.model"])
        transformers.LlamaTokenizer.from_pretrained(folder, add_bos_token=True).save_pretrained(f"{folder}/made")
        newer = Path(folder, "made", "tokenizer.json").read_bytes()
    files |= {"newer.json": newer, "tokenizer.json": as_transformers_4_wrote(newer)}
    spm = sentencepiece.SentencePieceProcessor(model_proto=files["tokenizer.model"]).get_piece_size()
    sizes = {"spm": spm, "spm and json": spm}
    for kind in ("llama3", "byte-level"):
        sizes[kind] = tokenizers.Tokenizer.from_buffer(files[f"{kind}.json"]).get_vocab_size()
    return files | {"sizes.json": json.dumps(sizes).encode()}


def facts(folder: Path, files: dict[str, bytes]) -> dict[str, np.ndarray]:
    """Logits, whether BOS opens a text, and its ids without that."""
    how = {"dtype": torch.float32, "attn_implementation": "eager"}
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, **how).eval()
    with torch.no_grad():
        found = {"logits": picked(model(torch.from_numpy(TOKENS)).logits.numpy())}
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    found["opens"] = np.array(tokenizer("a").input_ids[0] != tokenizer("a", add_special_tokens=False).input_ids[0])
    for place, text in enumerate(TEXTS):
        found[f"ids/{place}"] = np.array(tokenizer(text, add_special_tokens=False).input_ids, np.int32)
    if isinstance(tokenizer, transformers.LlamaTokenizer):
        # This class loses a space at the beginning of a text; what counts is the library that the model was made with.
        pieces = sentencepiece.SentencePieceProcessor(model_proto=files["tokenizer.model"])
        found["ids/1"] = np.array(pieces.encode(TEXTS[1]), np.int32)
    return found


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    files = small_tokenizers()
    arrays = {f"files/{name}": np.frombuffer(content, np.uint8) for name, content in files.items()}
    with tempfile.TemporaryDirectory() as place:
        for name, (model, change, _) in CASES.items():
            directory = small(model, files)
            change(directory)
            torch.manual_seed(0)  # of what is not there
            try:
                found = facts(directory.write(Path(place, name)), files)
            except Exception as error:
                print(f"{name}: {type(error).__name__}: {str(error)[:150]!r}")
                continue
            arrays |= {f"{name}/{key}": array for key, array in found.items()}
    target = Path(__file__).with_name("published.npz")
    np.savez_compressed(target, **arrays)
    print(f"{target}: transformers {transformers.__version__}, torch {torch.__version__}, {len(CASES)} directories")
