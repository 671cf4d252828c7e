"""The other side of `benchmark grpo` and `benchmark ppo`: TRL's GRPOTrainer or PPOTrainer, on eager PyTorch on CPU, by
its own training loop. Imports no JAX and runs in a process of its own, `turns.Side`."""

import tempfile
import time
from importlib.metadata import version
from typing import Any

from llama_jax.benchmarks.rl.rewarded import remainder
from llama_jax.benchmarks.transformers_side import adapter_config
from llama_jax.benchmarks.trl_turns import Waiting
from llama_jax.benchmarks.turns import Turn, processors, serve

_NEVER = "<|never|>"
"""A token beside the vocabulary of the model, which is therefore never sampled: it ends nothing and pads nothing."""


def main() -> None:
    """Entry point of the other side; see `turns.Side`."""
    serve(_prepare)


def _prepare(task: dict[str, Any]) -> tuple[Turn, dict[str, Any]]:
    """Makes the trainer as TRL makes it, but for what is said of the numbers; a turn is an iteration.

    Args:
        task: `model`, a directory of Hugging Face's, and `reward_model`, another for PPO, else None; `prompts`, of ids;
            `rollout`, `training` and `lora`, fields of our configs, the last None where all parameters train;
            `settings`, other arguments of TRL's own config.
    """
    import torch
    import transformers

    threads = processors()
    torch.set_num_threads(threads)
    generation = _Timed()
    trainer = _ppo(task, generation) if task["reward_model"] else _grpo(task, generation)
    trainer.remove_callback(transformers.PrinterCallback)
    turn = _iterations(trainer, generation)
    turn(2)
    model: Any = getattr(trainer, "policy_model", trainer.model)
    versions = f"trl {version('trl')}, transformers {transformers.__version__}, torch {torch.__version__}"
    return turn, {
        "what": f"{versions}, {threads} threads",
        "trained": sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
    }


class _Timed:
    """Measures the calls of a function."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def __call__(self, function: Any) -> Any:
        """The same function, measured."""

        def timed(*arguments: Any, **named: Any) -> Any:
            started = time.perf_counter()
            found = function(*arguments, **named)
            self.seconds.append(time.perf_counter() - started)
            return found

        return timed


def _grpo(task: dict[str, Any], generation: _Timed) -> Any:
    import trl
    from datasets import Dataset

    ids = {str(number): prompt for number, prompt in enumerate(task["prompts"])}

    class Trainer(trl.GRPOTrainer):
        def _tokenize_prompts(self, prompts: list[str]) -> Any:
            return [ids[prompt] for prompt in prompts], None, {}  # ids already, the same as on our side

        def _generate_single_turn(self, *arguments: Any, **named: Any) -> Any:
            return generation(super()._generate_single_turn)(*arguments, **named)

    rollout = task["rollout"]
    config = trl.GRPOConfig(
        **_common(task),
        num_generations=rollout["num_generations"],
        max_completion_length=rollout["max_new_tokens"],
        temperature=rollout["temperature"],
        max_grad_norm=task["training"]["clip_norm"],
        **task["settings"],
    )
    return Trainer(
        model=_opened(task["model"], "AutoModelForCausalLM"),
        reward_funcs=remainder,
        args=config,
        train_dataset=Dataset.from_list([{"prompt": number} for number in ids]),
        processing_class=_tokenizer(task),
        peft_config=None if task["lora"] is None else adapter_config(task["lora"]),
    )


def _ppo(task: dict[str, Any], generation: _Timed) -> Any:
    from datasets import Dataset
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer  # pyright: ignore

    ppo_trainer.batch_generation = generation(ppo_trainer.batch_generation)
    rollout, common = task["rollout"], _common(task)
    config = PPOConfig(
        **common,
        total_episodes=common["per_device_train_batch_size"] * 100_000,
        local_rollout_forward_batch_size=common["per_device_train_batch_size"],
        num_sample_generations=0,
        response_length=rollout["max_new_tokens"],
        temperature=rollout["temperature"],
        **task["settings"],
    )
    reward, value = (_opened(task["reward_model"], "AutoModelForSequenceClassification", num_labels=1) for _ in "12")
    prompts = Dataset.from_list([{"input_ids": prompt} for prompt in task["prompts"]])
    return PPOTrainer(
        args=config,
        processing_class=_tokenizer(task),
        model=_opened(task["model"], "AutoModelForCausalLM"),
        ref_model=None,
        reward_model=reward,
        value_model=value,
        train_dataset=prompts,
        eval_dataset=prompts,  # it wants one, and never reads it
    )


def _common(task: dict[str, Any]) -> dict[str, Any]:
    """Settings that both trainers have."""
    training, rollout = task["training"], task["rollout"]
    return {
        "output_dir": tempfile.mkdtemp(),
        "per_device_train_batch_size": rollout["prompts"] * rollout["num_generations"],
        "num_train_epochs": 100_000,
        "logging_steps": 10**9,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
        "learning_rate": training["peak_learning_rate"],
        "lr_scheduler_type": "constant",
        "adam_beta1": training["beta1"],
        "adam_beta2": training["beta2"],
        "adam_epsilon": training["epsilon"],
        "weight_decay": training["weight_decay"],
    }


def _opened(path: str, kind: str, **more: Any) -> Any:
    import torch
    import transformers

    model = getattr(transformers, kind).from_pretrained(path, dtype=torch.float32, **more)
    if hasattr(model, "generation_config"):
        model.generation_config.eos_token_id = None
    return model


def _tokenizer(task: dict[str, Any]) -> Any:
    """That of the model, whose end is never sampled."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(task["model"])
    tokenizer.add_special_tokens({"eos_token": _NEVER, "pad_token": _NEVER})
    vocabulary = transformers.AutoConfig.from_pretrained(task["model"]).vocab_size
    if tokenizer.eos_token_id < vocabulary:
        raise RuntimeError(f"{_NEVER} is token {tokenizer.eos_token_id} of {vocabulary}, which may be sampled")
    return tokenizer


def _iterations(trainer: Any, generation: _Timed) -> Turn:
    """Iterations of its training loop; gives the seconds of generation of the last."""
    import transformers

    waiting = Waiting()

    class Waits(transformers.TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            waiting.begin()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            waiting.wait({"seconds": {"generation": generation.seconds[-1]}})

    trainer.add_callback(Waits())
    return waiting.turns(trainer.train)
