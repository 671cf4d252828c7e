"""Records what TRL makes of a small rollout: its PPO where trl 1.12.0 is installed, the last that has it, its GRPO and
RLOO where trl 1.16.0 is.

    python tests/oracle/record_trl_policy.py

TRL's own lines are run, cut out of its methods: these do everything at once, from models to logs. Gradients are by the
log-probabilities and values of each token."""

import inspect
import math
import sys
import textwrap
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import trl

sys.path.insert(0, str(Path(__file__).parent))
from small_rollouts import CORRECTIONS, GROUP, GRPO_LOSSES, LENGTHS, MASK, PPO_SETTINGS, C, N, rollout

FOLDER = Path(__file__).parent
RATIO = "vllm_importance_sampling_ratio = vllm_importance_sampling_ratio.masked_fill("


def lines_of(function: Any, first: str, last: str) -> Any:
    """The lines of a function from the one that begins with a text to the next that begins with another."""
    lines = inspect.getsource(function).splitlines()
    starts = next(number for number, line in enumerate(lines) if line.strip().startswith(first))
    ends = next(n for n, line in enumerate(lines) if n > starts and line.strip().startswith(last))
    while True:
        try:
            return compile(textwrap.dedent("\n".join(lines[starts : ends + 1])), function.__qualname__, "exec")
        except SyntaxError:
            ends += 1  # a statement of several lines


def tensors() -> dict[str, torch.Tensor]:
    return {name: torch.tensor(array) for name, array in rollout().items()}


def record_grpo() -> dict[str, Any]:
    from trl.trainer import grpo_trainer

    found = {}
    for name, settings in GRPO_LOSSES.items():
        found[f"loss_{name}"], found[f"gradient_{name}"] = grpo_loss(grpo_trainer, **settings)
    correct = lines_of(grpo_trainer.GRPOTrainer._generate_and_score_completions, "mask = completion_mask if", RATIO)
    for mode, low, high in CORRECTIONS:
        given = tensors()
        known = {"tool_mask": None, "completion_mask": torch.tensor(MASK).float(), "torch": torch, "math": math}
        known |= {"old_per_token_logps": given["old"], "sampling_per_token_logps": given["sampler"]}
        known["self"] = SimpleNamespace(
            vllm_importance_sampling_mode=mode,
            vllm_importance_sampling_clip_min=low,
            vllm_importance_sampling_clip_max=high,
        )
        known["sequence_level_is"] = mode.startswith("sequence")
        exec(correct, known)
        found[f"weights_{mode}_{low}"] = known["vllm_importance_sampling_ratio"].expand(N, C).numpy()
    return found | grpo_advantages(grpo_trainer) | record_rloo()


def grpo_loss(module: Any, loss_type: str, level: str = "token", beta: float = 0.0, **settings: Any) -> tuple[Any, Any]:
    given, mask = tensors(), torch.tensor(MASK).float()
    logprobs = given["new"].requires_grad_()
    accelerator = SimpleNamespace(
        num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x, sync_gradients=True
    )
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (logprobs, torch.zeros(N, C), None),
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level=level,
        beta=beta,
        args=SimpleNamespace(
            use_bias_correction_kl=settings.get("corrected", True),
            delta=settings.get("delta"),
            steps_per_generation=1,
        ),
        loss_type=loss_type,
        epsilon_low=0.2,
        epsilon_high=settings.get("epsilon_high", 0.2),
        use_vllm=True,
        vllm_importance_sampling_correction=True,
        current_gradient_accumulation_steps=1,
        max_completion_length=C,
        aux_loss_enabled=False,
        model=SimpleNamespace(training=True),
        _entropy_bonus_enabled=False,
        accelerator=accelerator,
        _metrics=defaultdict(lambda: defaultdict(list)),
    )
    inputs = {"prompt_ids": torch.zeros(N, 1), "prompt_mask": torch.ones(N, 1), "completion_ids": torch.zeros(N, C)}
    inputs |= {"completion_mask": mask, "advantages": given["advantages"], "old_per_token_logps": given["old"]}
    inputs |= {"ref_per_token_logps": given["reference"], "num_items_in_batch": mask.sum()}
    inputs["importance_sampling_ratio"] = torch.tensor([[0.5], [1.0], [2.0], [0.0]])
    loss = module.GRPOTrainer._compute_loss(trainer, SimpleNamespace(training=True), inputs)
    loss.backward()
    return loss.item(), logprobs.grad.numpy()


def grpo_advantages(module: Any) -> dict[str, Any]:
    found = {}
    lines = lines_of(
        module.GRPOTrainer._generate_and_score_completions,
        "unscorable_mask = ",
        "advantages = torch.nan_to_num(advantages, nan=0.0)",
    )
    for rewards in ("rewards", "more_rewards"):
        for scaling, aggregation in (
            ("group", "sum_then_normalize"),
            ("batch", "sum_then_normalize"),
            ("none", "sum_then_normalize"),
            ("group", "normalize_then_sum"),
        ):
            trainer = SimpleNamespace(
                multi_objective_aggregation=aggregation,
                scale_rewards=scaling,
                reward_weights=torch.tensor([1.0, 0.5, 2.0]),
                reward_funcs=[None] * 3,
            )
            scope = {**vars(module), "self": trainer, "rewards_per_func": tensors()[rewards], "device": "cpu"}
            scope["num_generations"] = GROUP
            exec(lines, scope)
            found[f"advantages_{rewards}_{scaling}_{aggregation}"] = scope["advantages"].numpy()
    return found


def record_rloo() -> dict[str, Any]:
    from trl.trainer import rloo_trainer

    found = {}
    lines = lines_of(
        rloo_trainer.RLOOTrainer._generate_and_score_completions,
        "unscorable_mask = ",
        "advantages = torch.nan_to_num(advantages, nan=0.0)",
    )
    given = tensors()
    for rewards in ("rewards", "more_rewards"):
        for normalized in (False, True):
            trainer = SimpleNamespace(
                reward_weights=torch.tensor([1.0, 0.5, 2.0]),
                reward_clip_range=None,
                beta=0.05,
                normalize_advantages=normalized,
            )
            scope = {**vars(rloo_trainer), "self": trainer, "rewards_per_func": given[rewards], "device": "cpu"}
            scope |= {"num_generations": GROUP, "gather": lambda x: x, "completion_mask": torch.tensor(MASK).float()}
            scope |= {"old_per_token_logps": given["old"], "ref_per_token_logps": given["reference"]}
            exec(lines, scope)
            found[f"rloo_{rewards}_{normalized}"] = scope["advantages"].numpy()
    logprobs, mask = given["new"].requires_grad_(), torch.tensor(MASK).float()
    lines = lines_of(
        rloo_trainer.RLOOTrainer._compute_loss, "logps = (per_token_logps", "loss = per_sequence_loss.mean()"
    )
    scope = {"per_token_logps": logprobs, "completion_mask": mask, "torch": torch}
    scope["inputs"] = {"old_logps": (given["old"] * mask).sum(1), "advantages": given["advantages"]}
    scope["self"] = SimpleNamespace(epsilon_low=0.2, epsilon_high=0.2)
    exec(lines, scope)
    scope["loss"].backward()
    return found | {"loss_rloo": scope["loss"].item(), "gradient_rloo": logprobs.grad.numpy()}


def record_ppo() -> dict[str, Any]:
    from trl.experimental.ppo import ppo_trainer

    found, train = {}, ppo_trainer.PPOTrainer.train
    shaping = lines_of(train, "# be very careful with", "advantages = torch.masked_fill(")
    loss = lines_of(train, "new_logprobs = torch.masked_fill(", "loss = pg_loss + args.vf_coef * vf_loss")
    for name, settings in PPO_SETTINGS.items():
        given = tensors()
        scores = given["scores"].clone()
        args = SimpleNamespace(
            kl_coef=0.05, gamma=0.97, lam=0.9, cliprange=0.2, cliprange_value=0.2, vf_coef=0.1, **settings
        )
        scope = {**vars(ppo_trainer), "args": args, "responses": torch.zeros(N, C), "scores": scores}
        scope |= {"logprobs": given["old"], "ref_logprobs": given["reference"], "values": given["values"]}
        scope["sequence_lengths"] = torch.tensor(LENGTHS - 1)
        exec(shaping, scope)
        found |= {f"{key}_{name}": scope[key].numpy().copy() for key in ("rewards", "advantages", "returns")}
        new_logprobs, values = given["new"].requires_grad_(), given["new_values"].requires_grad_()
        scope |= {"new_logprobs": new_logprobs, "micro_batch_inds": torch.arange(N)}
        scope |= {"mb_advantage": scope["advantages"], "mb_return": scope["returns"], "mb_values": scope["values"]}
        scope |= {"mb_logprobs": scope["logprobs"], "context_length": 1}
        scope["vpred_temp"] = torch.nn.functional.pad(values, (0, 1))  # the answer is cut out of it
        exec(loss, scope)
        scope["loss"].backward()
        found |= {f"policy_loss_{name}": scope["pg_loss"].item(), f"value_loss_{name}": scope["vf_loss"].item()}
        found |= {f"policy_gradient_{name}": new_logprobs.grad.numpy(), f"value_gradient_{name}": values.grad.numpy()}
    whiten = ppo_trainer.masked_whiten
    values, mask = tensors()["values"], torch.tensor(MASK)
    return found | {f"whitened_{shift}": whiten(values, mask, shift_mean=shift).numpy() for shift in (True, False)}


if __name__ == "__main__":
    record = {"1.12.0": record_ppo, "1.16.0": record_grpo}[trl.__version__]
    np.savez_compressed(FOLDER / f"trl_{record.__name__.removeprefix('record_')}.npz", **record())
    print(f"{record.__name__} with trl {trl.__version__}, torch {torch.__version__}")
