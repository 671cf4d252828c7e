"""The other side of a comparison: Hugging Face transformers' LLaMA, eager PyTorch on CPU. Imports no JAX and runs
in a process of its own, `turns.Side`."""

from typing import Any

from llama_jax.benchmarks.turns import Turn, processors, serve
from llama_jax.core.errors import UserError


def main() -> None:
    """Entry point of the other side; see `turns.Side`."""
    serve(_prepare)


def _prepare(task: dict[str, Any]) -> tuple[Turn, dict[str, Any]]:
    """Makes the training step that people write: float32, SDPA, `clip_grad_norm_`, fused AdamW.

    Args:
        task: `model`, fields of our LlamaConfig; `training`, fields of our TrainingConfig; `sequence_length`; `lora`,
            fields of our AdapterConfig for an adapter of PEFT over frozen weights, or None; `compiled`, whether the
            model goes through `torch.compile`.
    """
    try:
        import torch
        import transformers  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"--against {'peft' if task['lora'] else 'transformers'}: {error}; pip install 'llama_jax[oracle]'"
        ) from None
    threads = processors()
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model, versions = _model(task["model"])
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if task["lora"] is not None:
        import peft

        model = peft.get_peft_model(model, adapter_config(task["lora"]))
        versions = f"peft {peft.__version__}, {versions}"
    model.train()
    if task["compiled"]:
        model.compile()
        versions += ", compiled"
    training = task["training"]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        trained,
        lr=training["peak_learning_rate"],
        betas=(training["beta1"], training["beta2"]),
        eps=training["epsilon"],
        weight_decay=training["weight_decay"],
        fused=True,
    )
    shape = (training["batch_size"], task["sequence_length"])

    def turn(steps: int) -> None:
        for _ in range(steps):
            # Others each time: with a few that it soon knows by heart, a step came to take twice as long, most likely
            # by gradients too small for normal numbers.
            ids = torch.randint(0, task["model"]["vocab_size"], shape)
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, training["clip_norm"])
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            loss.item()

    turn(task["warmup_steps"])
    count = sum(parameter.numel() for parameter in trained)
    return turn, {"what": f"{versions}, {threads} threads", "parameters": parameters, "trained": count}


def _model(sizes: dict[str, Any]) -> tuple[Any, str]:
    """A model of random weights, float32, and the versions it is made with."""
    import torch
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=sizes["vocab_size"],
        hidden_size=sizes["width"],
        intermediate_size=sizes["mlp_width"],
        num_hidden_layers=sizes["num_layers"],
        num_attention_heads=sizes["num_heads"],
        num_key_value_heads=sizes["num_kv_heads"],
        head_dim=sizes["head_size"],
        max_position_embeddings=sizes["context_length"],
        rms_norm_eps=sizes["norm_epsilon"],
        tie_word_embeddings=sizes["tie_embeddings"],
        attn_implementation="sdpa",  # pyright: ignore[reportCallIssue]
        use_cache=False,
    )
    versions = f"transformers {transformers.__version__}, torch {torch.__version__}"
    return transformers.LlamaForCausalLM(config).float(), versions


def adapter_config(adapter: dict[str, Any]) -> Any:
    """PEFT's settings of an adapter.

    Args:
        adapter: fields of our AdapterConfig.
    """
    import peft

    targets = list(adapter["target_modules"])
    return peft.LoraConfig(
        r=adapter["rank"],
        lora_alpha=adapter["alpha"],
        lora_dropout=adapter["dropout"],
        target_modules="all-linear" if targets == ["all-linear"] else targets,
        use_rslora=adapter["rank_stabilized"],
        use_dora=adapter["dora"],
        task_type="CAUSAL_LM",
    )
