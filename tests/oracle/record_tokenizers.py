"""Record the ids that Hugging Face transformers gives texts with tokens that stand beside a tokenizer, and with Unigram
tokenizers, into `transformers_tokenizers.json`, with the files it was given.

pip install transformers sentencepiece protobuf && python tests/oracle/record_tokenizers.py
"""

import base64
import io
import json
import tempfile
from pathlib import Path

import sentencepiece
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

TRAINING = [
    "The river runs past the old mill and into the sea.",
    "A small boat carries apples to the town.",
    "Numbers such as 12, 345 and 6789 are easy to add.",
    "She said: what time is it now?",
    "user assistant system answer question",
] * 40
END, START = "<|im_end|>", "<|im_start|>"
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHAT = [{"role": "user", "content": "apples, 12 \u20ac"}, {"role": "assistant", "content": " The  boat"}]
TEXTS = [
    "The small boat, 12 \u20ac",
    "apples\n\n  to  the sea \u6d77",
    f"{START}user\nThe river{END}\n{START} apples {END} to{END}",
    f"boat{END}s and {START}{END}</s>12",
]
PLAIN = [text for text in TEXTS if END not in text]
HARD = ["", "a", "\uff21\uff22 caf\u00e9 e\u0301 \u2460", "1812 + 34567", "don't WE'LL", "\u6d77\U0001f642 sea"]
NAMES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def trained(kind: str, size: int, **settings) -> bytes:
    """A model of sentencepiece, as LLaMA's are but for the settings."""
    made = io.BytesIO()
    plain = {"byte_fallback": True, "normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TRAINING),
        model_writer=made,
        model_type=kind,
        vocab_size=size,
        hard_vocab_limit=False,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        minloglevel=2,
        **(plain | settings),
    )
    return made.getvalue()


def decoder(size: int, *names: str, special: bool = True, **flags: bool) -> dict:
    """`added_tokens_decoder` with the first three tokens and the given ones behind the vocabulary."""
    plain = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    listed = [*enumerate(("<unk>", "<s>", "</s>")), *enumerate(names, size)]
    return {
        "added_tokens_decoder": {
            str(number): {"content": name, **plain, "special": number < 3 or special} | (flags if number > 2 else {})
            for number, name in listed
        }
    }


def config(kind: str, *more: dict) -> dict:
    fields = {"tokenizer_class": kind, "add_bos_token": False, "chat_template": TEMPLATE, **NAMES}
    for each in more:
        fields |= each
    return fields


def unigram_json(model: bytes, special: tuple[str, ...], *, low: bool = False, style: str = "metaspace") -> str:
    """The vocabulary of a model as `tokenizer.json`.

    Args:
        special: names of the added tokens.
        low: their scores are low, as some converters write them.
        style: how spaces and characters are replaced.
    """
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    pieces = [(processor.id_to_piece(i), processor.get_score(i)) for i in range(processor.get_piece_size())]
    pieces = [(name, -100.0 if low and name in special else score) for name, score in pieces]
    made = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback="<0x0A>" in dict(pieces)))
    if style == "prepend":
        made.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    else:
        made.normalizer = normalizers.NFKC() if style == "nfkc" else normalizers.Sequence([])
        made.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="always")
    made.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    made.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)])
    return made.to_str()


def byte_level_json() -> str:
    """A `tokenizer.json` of bytes alone, with BOS and EOS behind them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={name: number for number, name in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in ("<s>", "</s>")])
    return made.to_str()


def cases(models_of: dict[str, bytes]) -> dict[str, tuple[str | None, dict]]:
    """The model and the other files of each case, by name."""
    llama, fast = "LlamaTokenizer", "PreTrainedTokenizerFast"
    n = sentencepiece.SentencePieceProcessor(model_proto=models_of["bpe"]).get_piece_size()
    added = {"added_tokens.json": {END: n, START: n + 1}}
    both = decoder(n, END, START)
    defined = sentencepiece.SentencePieceProcessor(model_proto=models_of["defined"])
    stated = {defined.piece_to_id(name): name for name in (START, END)}
    known = decoder(n)
    for number, name in stated.items():
        known["added_tokens_decoder"][str(number)] = known["added_tokens_decoder"]["1"] | {"content": name}
    json_names = {"tokenizer_class": fast, "bos_token": "<s>", "eos_token": "</s>", "chat_template": TEMPLATE}
    with_bpe = {
        "both": (config(llama, both), added),
        "added_tokens.json": (config(llama), added),
        "decoder": (config(llama, both), {}),
        "not special": (config(llama, decoder(n, END, START, special=False)), added),
        "eos": (config(llama, both, {"eos_token": END}), added),
        "named in special_tokens_map": (
            config(llama),
            added | {"special_tokens_map.json": {"additional_special_tokens": [START, END]}},
        ),
        "legacy": (config(llama, both, {"legacy": True}), added),
        "no space": (config(llama, both, {"add_prefix_space": False}), {}),
        "file as it is": (config(fast, both), {}),
        "file as it is, not legacy": (config(fast, both, {"legacy": False}), {}),
        "only named": (config(llama, {"pad_token": "[PAD]", "additional_special_tokens": [START, END]}), {}),
        "extra": (config(llama, {"extra_special_tokens": [END, START], "pad_token": "<unk>"}), {}),
        "strips": (config(llama, decoder(n, END, START, rstrip=True, lstrip=True)), {}),
        "single words": (config(llama, decoder(n, END, START, single_word=True)), {}),
    }
    made: dict = {name: ("bpe", {"tokenizer_config.json": first, **rest}) for name, (first, rest) in with_bpe.items()}
    made["pieces that are special"] = ("defined", {"tokenizer_config.json": config(fast, known)})
    json_file = {"tokenizer.json": json.loads(byte_level_json())}
    behind = decoder(258, END, START)["added_tokens_decoder"]
    behind = {"added_tokens_decoder": {number: behind[number] for number in ("258", "259")}}
    made |= {
        "json, decoder": (None, json_file | {"tokenizer_config.json": json_names | behind}),
        "json, added_tokens.json": (
            None,
            json_file | {"tokenizer_config.json": json_names, "added_tokens.json": {END: 258, START: 259}},
        ),
        "json, named": (
            None,
            json_file | {"tokenizer_config.json": json_names | {"pad_token": END, "extra_special_tokens": [START]}},
        ),
    }
    special = ("<unk>", "<s>", "</s>")
    for name, arguments in {
        "unigram, all special": ("unigram", special),
        "unigram, no unk": ("unigram", special[1:]),
        "unigram, without bytes": ("no bytes", special),
    }.items():
        made[name] = _unigram_case(models_of, *arguments)
    made["unigram, low scores"] = _unigram_case(models_of, "unigram", special, low=True)
    made["unigram, prepend"] = _unigram_case(models_of, "unigram", special, style="prepend")
    made["unigram, nfkc"] = _unigram_case(models_of, "unigram", special, style="nfkc")
    return made


def _unigram_case(models_of: dict[str, bytes], model: str, special: tuple[str, ...], **how) -> tuple[None, dict]:
    content = json.loads(unigram_json(models_of[model], special, **how))
    names = {"tokenizer_class": "PreTrainedTokenizerFast", **NAMES}
    return None, {"tokenizer.json": content, "tokenizer_config.json": names}


def record(model: bytes | None, files: dict) -> dict:
    """The ids of transformers."""
    with tempfile.TemporaryDirectory() as folder:
        if model is not None:
            (Path(folder) / "tokenizer.model").write_bytes(model)
        for name, content in {"config.json": {"model_type": "llama"}, **files}.items():
            (Path(folder) / name).write_text(json.dumps(content))
        made = transformers.AutoTokenizer.from_pretrained(folder)
        texts = TEXTS if "chat_template" in files["tokenizer_config.json"] else [*PLAIN, *HARD]
        found = {"texts": {text: made(text, add_special_tokens=False)["input_ids"] for text in texts}}
        if made.chat_template:
            found["chat"] = list(made.apply_chat_template(CHAT, add_generation_prompt=True, return_dict=False))
    return found


if __name__ == "__main__":
    given = {
        "bpe": trained("bpe", 384),
        "defined": trained("bpe", 384, user_defined_symbols=[START, END, "<tool>"]),
        "unigram": trained("unigram", 330),
        "no bytes": trained("unigram", 120, byte_fallback=False),
    }
    recorded = {
        name: {"model": model, "files": files, **record(model and given[model], files)}
        for name, (model, files) in cases(given).items()
    }
    target = Path(__file__).with_name("transformers_tokenizers.json")
    models_json = {name: base64.b64encode(model).decode() for name, model in given.items()}
    lines = [f"  {json.dumps(name)}: {json.dumps(case)}" for name, case in recorded.items()]
    opening = f'{{"chat": {json.dumps(CHAT)},\n "models": {json.dumps(models_json)},\n "cases": {{\n'
    target.write_text(opening + ",\n".join(lines) + "}}\n")
    print(f"{target}: transformers {transformers.__version__}, sentencepiece {sentencepiece.__version__}")
