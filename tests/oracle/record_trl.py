"""Record what TRL computes for the small pairs, into `trl_preferences.npz`: losses of its trainers of reward models,
DPO, KTO, CPO (SimPO) and ORPO, their gradients by two vectors of the network, and what they report.

pip install torch transformers peft trl==1.16.0 && python tests/oracle/record_trl.py
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
import transformers
import trl
from datasets import Dataset
from record_transformers import small_llama
from small_llamas import BASE, weight
from small_preferences import BETA, CPO, DPO, EOS, KTO, LABELS, MARGINS, MODEL, PAIRS, REWARD
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

GRADIENTS = {"first_norm": "model.layers.0.input_layernorm.weight", "final_norm": "model.norm.weight"}
"""What losses are differentiated by: behind the one lies all of the network, behind the other its head."""


REPORTED = ("rewards/", "logps/", "kl", "accuracy", "margin", "nll_loss", "log_odds_ratio")
"""Of what trainers report, and how the names begin."""


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    """A word for each id, `w7` for 7."""
    vocabulary = {f"w{number}": number for number in range(BASE["vocab_size"]) if number not in (0, EOS)}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary | {"<pad>": 0, "</s>": EOS}, unk_token="w1"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=model, eos_token="</s>", pad_token="<pad>")


def words(ids: list[int]) -> str:
    return "".join(f"w{number} " for number in ids)


def pairs() -> Dataset:
    names = ("prompt", "chosen", "rejected")
    return Dataset.from_list([dict(zip(names, map(words, pair), strict=True)) for pair in PAIRS])


def singles() -> Dataset:
    rows = zip(PAIRS, LABELS, strict=True)
    return Dataset.from_list(
        [{"prompt": words(prompt), "completion": words(chosen), "label": label} for (prompt, chosen, _), label in rows]
    )


def reference(kind: str = "reference") -> transformers.LlamaForCausalLM:
    """A model beside `small_llama(MODEL)`, another for each kind."""
    model = small_llama(MODEL)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.lerp_(torch.from_numpy(weight(f"{kind}.{name}", tuple(parameter.shape))), 0.3)
    return model


def made(trainer: type, config: type, data: Dataset, model: Any = None, **settings: Any) -> Any:
    """A trainer of TRL in float32 on the CPU that reports nothing."""
    others = {name: settings.pop(name) for name in ("ref_model",) if name in settings}
    if not trainer.__module__.startswith("trl.trainer.reward"):
        settings["beta"] = BETA
    arguments = config(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=len(PAIRS),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        **settings,
    )
    model = small_llama(MODEL) if model is None else model
    return trainer(model=model, args=arguments, train_dataset=data, processing_class=tokenizer(), **others)


def batch_of(trainer: Any) -> dict[str, Any]:
    """All of its data, without what its models do not read."""
    for row in trainer.train_dataset:
        assert not any(1 in row[name] for name in row if name.endswith("_ids")), "a word that is not in the vocabulary"
    return trainer.data_collator(list(trainer._remove_unused_columns(trainer.train_dataset)))


def recorded(trainer: Any, loss: Callable[[], torch.Tensor]) -> dict[str, np.ndarray]:
    """A loss and its gradients, and what the trainer keeps of it for its log."""
    trainer.model.zero_grad()
    value = loss()
    value.backward()
    parameters = dict(trainer.model.named_parameters())
    result = {name: parameters[path].grad.numpy().copy() for name, path in GRADIENTS.items()}
    metrics = trainer._metrics["eval"] if hasattr(trainer, "_metrics") else {}
    reported = {name: np.float32(each[-1]) for name, each in metrics.items() if name.startswith(REPORTED)}
    return {"loss": value.detach().numpy()} | result | reported


def of_rewards(name: str) -> dict[str, np.ndarray]:
    settings = dict(REWARD[name])
    data = pairs()
    if settings.pop("margin", False):
        data = data.add_column("margin", MARGINS)
    config = small_llama(MODEL).config
    config.num_labels, config.pad_token_id = 1, 0
    model = transformers.LlamaForSequenceClassification(config).eval()
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(weight(path, tuple(parameter.shape))))
    trainer = made(trl.RewardTrainer, trl.RewardConfig, data, model, **settings)
    batch = batch_of(trainer)
    result = recorded(trainer, lambda: trainer.compute_loss(model, dict(batch)))
    inputs = {name: each for name, each in batch.items() if name != "margin"}
    rewards = model(**inputs).logits.detach().numpy().reshape(2, -1).T
    return result | {"rewards": rewards, "head": model.score.weight.grad.numpy().copy()}


def of_dpo(name: str) -> dict[str, np.ndarray]:
    trainer = made(trl.DPOTrainer, trl.DPOConfig, pairs(), ref_model=reference(), **DPO[name])
    batch = batch_of(trainer)
    logprobs = {
        key: torch.stack(trainer.compute_ref_log_probs(model, batch), dim=1).numpy()
        for key, model in {"logprobs": trainer.model, "reference": trainer.ref_model}.items()
    }
    return logprobs | recorded(trainer, lambda: trainer.compute_loss(trainer.model, batch))


def of_kto(name: str) -> dict[str, np.ndarray]:
    """`kl_completions`: the ids after which each prompt tells the divergence, padded with 0."""
    settings = dict(KTO[name])
    beside = reference(settings.pop("reference", "base"))
    trainer = made(trl.KTOTrainer, trl.KTOConfig, singles(), ref_model=beside, **settings)
    batch = batch_of(trainer)
    values = trainer.compute_ref_log_probs(trainer.ref_model, batch)
    others = trainer.train_dataset["KL_completion_ids"]
    longest = max(map(len, others))
    return {
        "reference": torch.stack(values, dim=1).numpy(),
        "kl_completions": np.array([ids + [0] * (longest - len(ids)) for ids in others]),
    } | recorded(trainer, lambda: trainer.compute_loss(trainer.model, batch))


def of_others(trainer: Any) -> dict[str, np.ndarray]:
    """CPO and ORPO, which have no reference model."""
    batch = batch_of(trainer)
    _, metrics = trainer.get_batch_loss_metrics(trainer.model, batch)
    reported = {name: np.float32(value) for name, value in metrics.items() if name.startswith(REPORTED)}
    return recorded(trainer, lambda: trainer.get_batch_loss_metrics(trainer.model, batch)[0]) | reported


if __name__ == "__main__":
    results = {f"reward/{name}": of_rewards(name) for name in REWARD}
    results |= {f"dpo/{name}": of_dpo(name) for name in DPO} | {f"kto/{name}": of_kto(name) for name in KTO}
    results |= {f"cpo/{name}": of_others(made(CPOTrainer, CPOConfig, pairs(), **CPO[name])) for name in CPO}
    results["orpo"] = of_others(made(ORPOTrainer, ORPOConfig, pairs()))
    arrays = {f"{name}/{key}": value for name, result in results.items() for key, value in result.items()}
    target = Path(__file__).with_name("trl_preferences.npz")
    np.savez_compressed(target, **arrays)
    print(f"{target}: trl {trl.__version__}, torch {torch.__version__}, {len(arrays)} arrays")
    for name, result in results.items():
        print(name, float(result["loss"]), list(result))
