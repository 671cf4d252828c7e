"""One table of weight names, ours and those of other formats, and the one place where rotary conventions meet."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class WeightName:
    """One parameter in every naming.

    Attributes:
        ours: path in our tree; below `layers/` an array has a leading axis of layers.
        hugging_face: name in transformers' state dict; `{}` stands for the layer.
        meta: name in Meta's checkpoints.
        transposed: other formats store matrices as [out, in], we as [in, out].
        rotary: rows are paired by the rotary embedding, so Meta's order differs from ours.
    """

    ours: str
    hugging_face: str
    meta: str
    transposed: bool = True
    rotary: bool = False


WEIGHTS = (
    WeightName("embedding/table", "model.embed_tokens.weight", "tok_embeddings.weight", transposed=False),
    WeightName(
        "layers/attention_norm/scale",
        "model.layers.{}.input_layernorm.weight",
        "layers.{}.attention_norm.weight",
        transposed=False,
    ),
    WeightName(
        "layers/attention/q_proj/kernel",
        "model.layers.{}.self_attn.q_proj.weight",
        "layers.{}.attention.wq.weight",
        rotary=True,
    ),
    WeightName(
        "layers/attention/k_proj/kernel",
        "model.layers.{}.self_attn.k_proj.weight",
        "layers.{}.attention.wk.weight",
        rotary=True,
    ),
    WeightName(
        "layers/attention/v_proj/kernel", "model.layers.{}.self_attn.v_proj.weight", "layers.{}.attention.wv.weight"
    ),
    WeightName(
        "layers/attention/o_proj/kernel", "model.layers.{}.self_attn.o_proj.weight", "layers.{}.attention.wo.weight"
    ),
    WeightName(
        "layers/mlp_norm/scale",
        "model.layers.{}.post_attention_layernorm.weight",
        "layers.{}.ffn_norm.weight",
        transposed=False,
    ),
    WeightName(
        "layers/mlp/gate_proj/kernel", "model.layers.{}.mlp.gate_proj.weight", "layers.{}.feed_forward.w1.weight"
    ),
    WeightName(
        "layers/mlp/down_proj/kernel", "model.layers.{}.mlp.down_proj.weight", "layers.{}.feed_forward.w2.weight"
    ),
    WeightName("layers/mlp/up_proj/kernel", "model.layers.{}.mlp.up_proj.weight", "layers.{}.feed_forward.w3.weight"),
    WeightName("final_norm/scale", "model.norm.weight", "norm.weight", transposed=False),
    WeightName("lm_head/kernel", "lm_head.weight", "output.weight"),
)


def split_pairs(rows: np.ndarray, head_size: int) -> np.ndarray:
    """Rows of a q or k matrix, [heads * head_size, in], from Meta's rotary order (pairs are neighbours) to ours and
    transformers' (pairs are half a head apart)."""
    heads = rows.reshape(-1, head_size // 2, 2, rows.shape[-1])
    return heads.swapaxes(1, 2).reshape(rows.shape)


def padded(table: np.ndarray, rows: int) -> np.ndarray:
    """A table with one row a token, rows of zeros added up to the stored vocabulary."""
    return np.pad(table, ((0, rows - table.shape[0]), (0, 0)))
