"""LLaMA in plain PyTorch as people write it: RMSNorm, rotary positions, grouped queries through
`scaled_dot_product_attention`, SwiGLU, and optionally low-rank factors beside frozen weights. Imports no JAX."""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Rotation = tuple[Tensor, Tensor]
"""Cosine and sine of the angles `[T, H]`, float32."""


class Linear(nn.Module):
    """A product with a matrix, which is frozen where there are low-rank factors beside it (arXiv:2106.09685)."""

    def __init__(self, inputs: int, outputs: int, lora: Mapping[str, Any] | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) * 0.02, requires_grad=lora is None)
        self.scale = None
        if lora is not None:
            self.scale = lora["alpha"] / lora["rank"]
            self.a = nn.Parameter(torch.randn(lora["rank"], inputs, dtype=torch.float32) * inputs**-0.5)
            self.b = nn.Parameter(torch.zeros(outputs, lora["rank"], dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        made = F.linear(x, self.weight)
        if self.scale is None:
            return made
        return made + self.scale * F.linear(F.linear(x, self.a.to(x.dtype)), self.b.to(x.dtype))


class Norm(nn.Module):
    """RMSNorm (arXiv:1910.07467), in float32."""

    def __init__(self, width: int, epsilon: float, trains: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width), requires_grad=trains)
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.epsilon).to(x.dtype)


class Layer(nn.Module):
    """Attention and SwiGLU, each behind a norm and beside what comes in."""

    def __init__(self, config: Mapping[str, Any], lora: Mapping[str, Any] | None) -> None:
        super().__init__()
        width, size = config["width"], config["head_size"]
        self.heads, self.kv_heads, self.size = config["num_heads"], config["num_kv_heads"], size
        self.attention_norm, self.mlp_norm = (Norm(width, config["norm_epsilon"], lora is None) for _ in range(2))
        self.q_proj = Linear(width, self.heads * size, lora)
        self.k_proj, self.v_proj = (Linear(width, self.kv_heads * size, lora) for _ in range(2))
        self.o_proj = Linear(self.heads * size, width, lora)
        self.gate_proj, self.up_proj = (Linear(width, config["mlp_width"], lora) for _ in range(2))
        self.down_proj = Linear(config["mlp_width"], width, lora)

    def forward(self, x: Tensor, turned: Rotation, cache: tuple[Tensor, Tensor, Tensor] | None = None) -> Tensor:
        """Of whole rows, or of tokens whose keys and values go into a cache.

        Args:
            cache: keys and values `[B, K, S, H]`, changed in place, and the positions `[T]` of the tokens.
        """
        rows, length, _ = x.shape
        normed = self.attention_norm(x)
        query, key, value = (
            made.view(rows, length, heads, self.size).transpose(1, 2)
            for made, heads in (
                (self.q_proj(normed), self.heads),
                (self.k_proj(normed), self.kv_heads),
                (self.v_proj(normed), self.kv_heads),
            )
        )
        query, key = rotate(query, turned), rotate(key, turned)
        grouped = self.heads != self.kv_heads
        if cache is None:
            mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=grouped)
        else:
            keys, values, positions = cache
            keys.index_copy_(2, positions, key)
            values.index_copy_(2, positions, value)
            visible = torch.arange(keys.shape[2], device=x.device)[None] <= positions[:, None]
            mixed = F.scaled_dot_product_attention(query, keys, values, attn_mask=visible, enable_gqa=grouped)
        x = x + self.o_proj(mixed.transpose(1, 2).reshape(rows, length, -1))
        normed = self.mlp_norm(x)
        return x + self.down_proj(F.silu(self.gate_proj(normed)) * self.up_proj(normed))


def rotate(x: Tensor, turned: Rotation) -> Tensor:
    """Turn pairs (x[i], x[i + H/2]) by their angles, in float32."""
    first, second = x.float().chunk(2, dim=-1)
    cosine, sine = turned
    return (x.float() * cosine + torch.cat([-second, first], dim=-1) * sine).to(x.dtype)


class Llama(nn.Module):
    """The network, from tokens to logits.

    Args:
        config: fields of our LlamaConfig.
        lora: fields of our AdapterConfig, on every Linear of the blocks; None: everything trains.
    """

    def __init__(self, config: Mapping[str, Any], lora: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Parameter(
            torch.randn(config["vocab_size"], config["width"]) * 0.02, requires_grad=lora is None
        )
        self.layers = nn.ModuleList(Layer(config, lora) for _ in range(config["num_layers"]))
        self.final_norm = Norm(config["width"], config["norm_epsilon"], lora is None)
        self.lm_head = None
        if not config["tie_embeddings"]:
            self.lm_head = nn.Parameter(self.embedding.detach().clone(), requires_grad=lora is None)
        frequencies = torch.tensor(inverse_frequencies(config), dtype=torch.float32)
        self.register_buffer("frequencies", frequencies.repeat(2), persistent=False)
        self.checkpointed = False
        """Whether the activations of a layer are made again on the way back."""

    def rotation(self, positions: Tensor) -> Rotation:
        """Of tokens at the given positions `[T]`."""
        angles = positions.float()[:, None] * self.get_buffer("frequencies")[None]
        return angles.cos(), angles.sin()

    def logits(self, tokens: Tensor, positions: Tensor, caches: list[tuple[Tensor, Tensor]] | None = None) -> Tensor:
        """Of the next token at each position; from a cache, of the last one alone."""
        x = F.embedding(tokens, self.embedding)
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        turned = self.rotation(positions)
        for number, layer in enumerate(self.layers):
            if caches is not None:
                x = layer(x, turned, (*caches[number], positions))
            elif self.checkpointed:
                x = checkpoint(layer, x, turned, use_reentrant=False)
            else:
                x = layer(x, turned)
        x = self.final_norm(x if caches is None else x[:, -1:])
        return F.linear(x, self.embedding if self.lm_head is None else self.lm_head)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """The mean of -log p(target), in nats."""
        logits = self.logits(tokens, torch.arange(tokens.shape[1], device=tokens.device))
        return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())


def inverse_frequencies(config: Mapping[str, Any]) -> list[float]:
    """Radians a position of each pair; rescaled as Llama 3.1 has it, where the config says so."""
    size, scaling = config["head_size"], config["rope_scaling"]
    found = []
    for pair in range(0, size, 2):
        frequency = config["rope_base"] ** (-pair / size)
        if scaling:
            turns = scaling["original_context_length"] * frequency / (2 * math.pi)
            low, high = scaling["low_frequency_factor"], scaling["high_frequency_factor"]
            kept = min(max((turns - low) / (high - low), 0.0), 1.0)
            frequency *= kept + (1 - kept) / scaling["factor"]
        found.append(frequency)
    return found
