#!/usr/bin/env bash
# TRL: where the tokenizer has no pad token, RewardTrainer appends EOS, and the reward is read one token before it.
#
# Versions:  trl 1.16.0, transformers 5.24.0, torch 2.13.0 (CPU), datasets 5.2.0.
# Behaviour: RewardTrainer ends each text with EOS. Without a pad token it takes EOS for one, and the score is read at
#            the last token that is not padding, which then is the one before EOS. With a pad token of its own it is
#            read at EOS.
# Seen:      when the embedding of EOS is changed, rewards stay the same without a pad token, and change with one
# Means:     many tokenizers of LLaMA models have no pad token. The EOS of such a reward model is never looked at, so
#            that it cannot tell a finished answer from one that was cut, and rewards computed at EOS by another tool
#            are not the trained ones. Give the tokenizer a pad token of its own before training.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet trl==1.16.0 transformers==5.24.0 torch==2.13.0 datasets==5.2.0
cd "$folder"
HF_HOME=$folder/cache "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast
from trl import RewardConfig, RewardTrainer

PIECES = ("<unk>", "<s>", "</s>", "<pad>", "question", "good", "bad", "answer")
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SPECIAL = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
words = Tokenizer(models.WordLevel({piece: number for number, piece in enumerate(PIECES)}, unk_token="<unk>"))
words.pre_tokenizer = pre_tokenizers.Whitespace()
data = Dataset.from_list([{"prompt": "question", "chosen": " good answer", "rejected": " bad"}] * 2)
settings = RewardConfig(output_dir="out", bf16=False, use_cpu=True, report_to=[], disable_tqdm=True)


def is_eos_seen(pad):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token=pad, **SPECIAL)
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(LlamaConfig(vocab_size=8, num_labels=1, eos_token_id=2, **SIZES))
    trainer = RewardTrainer(model, settings, train_dataset=data, processing_class=tokenizer)
    batch = next(iter(trainer.get_train_dataloader()))
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        before = model(**inputs).logits
        model.model.embed_tokens.weight[tokenizer.eos_token_id] += 1.0
        after = model(**inputs).logits
    seen = bool((before != after).any())
    print(f"pad token {pad}: chosen {batch['input_ids'][0].tolist()}, the reward depends on EOS: {seen}")
    return seen


assert (is_eos_seen(None), is_eos_seen("<pad>")) == (False, True), "the reward is read elsewhere now"
PYTHON
