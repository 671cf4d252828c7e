"""The other side of `benchmark dpo`: TRL's DPOTrainer with an adapter of PEFT, on eager PyTorch on CPU, by its own
training loop. Imports no JAX and runs in a process of its own, `turns.Side`."""

import tempfile
from importlib.metadata import version
from typing import Any

from llama_jax.benchmarks.transformers_side import adapter_config
from llama_jax.benchmarks.trl_turns import Waiting
from llama_jax.benchmarks.turns import Turn, processors, serve


def main() -> None:
    """Entry point of the other side; see `turns.Side`."""
    serve(_prepare)


def _prepare(task: dict[str, Any]) -> tuple[Turn, dict[str, Any]]:
    """Makes the trainer as TRL makes it, but for what is said of the numbers; a turn is an epoch.

    Args:
        task: `model`, a directory of Hugging Face's; `pairs`, of ids; `batch_size` in pairs; `beta`; `lora` and
            `training`, fields of our AdapterConfig and TrainingConfig; `checkpointing`.
    """
    import peft
    import torch
    import transformers

    threads = processors()
    torch.set_num_threads(threads)
    trainer = _trainer(task)
    model: Any = trainer.model
    turn = _epochs(trainer)
    turn(1)
    versions = f"trl {version('trl')}, peft {peft.__version__}, transformers {transformers.__version__}"
    checkpoints = "with checkpointing" if task["checkpointing"] else "without checkpointing"
    return turn, {
        "what": f"{versions}, torch {torch.__version__}, {checkpoints}, {threads} threads",
        "trained": sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        "updates": len(trainer.get_train_dataloader()),
        "reference": list(
            zip(trainer.train_dataset["ref_chosen_logps"], trainer.train_dataset["ref_rejected_logps"], strict=True)
        ),
    }


def _trainer(task: dict[str, Any]) -> Any:
    import torch
    import transformers
    import trl
    from datasets import Dataset

    class Trainer(trl.DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset  # ids already, the same as on our side

    training = task["training"]
    config = trl.DPOConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=task["batch_size"],
        num_train_epochs=100_000,
        logging_strategy="epoch",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=task["checkpointing"],
        precompute_ref_log_probs=True,
        dataloader_pin_memory=False,
        max_length=None,  # they are cut already
        beta=task["beta"],
        learning_rate=training["peak_learning_rate"],
        lr_scheduler_type="constant",
        adam_beta1=training["beta1"],
        adam_beta2=training["beta2"],
        adam_epsilon=training["epsilon"],
        weight_decay=training["weight_decay"],
        max_grad_norm=training["clip_norm"],
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(task["model"], dtype=torch.float32)
    return Trainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_list(task["pairs"]),
        processing_class=transformers.AutoTokenizer.from_pretrained(task["model"]),
        peft_config=adapter_config(task["lora"]),
    )


def _epochs(trainer: Any) -> Turn:
    """Epochs of its training loop; gives the mean loss of the last."""
    import transformers

    waiting = Waiting()

    class Waits(transformers.TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            waiting.begin()

        def on_log(self, *_: Any, logs: dict[str, Any], **__: Any) -> None:
            waiting.wait(float(logs["loss"]))

    trainer.add_callback(Waits())
    return waiting.turns(trainer.train)
