"""LLaMA (Touvron et al. 2023, arXiv:2302.13971): a decoder with RMSNorm before each sublayer, rotary positions and
SwiGLU. Linen modules, used as pure functions through `LanguageModel`; knows no loss, no mesh and no files."""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from llama_jax.core import tree
from llama_jax.core.arrays import Array, Float, Int, PRNGKeyArray, PyTree
from llama_jax.core.errors import UserError
from llama_jax.core.sharding import constrain, gathered
from llama_jax.model.attention.cached import cached_attention
from llama_jax.model.attention.choice import CHECKPOINT_NAME, MASKED, attention
from llama_jax.model.cache import LayerCache, settled
from llama_jax.model.config import ComputeConfig, LlamaConfig
from llama_jax.model.layers import Cached, Embedding, Linear, RMSNorm, Rows, decaying, matmul, normal, param
from llama_jax.model.lora import without_adapter
from llama_jax.model.low_rank import PRODUCTS
from llama_jax.model.quantized import Weight, gathered_weight
from llama_jax.model.rope import rotate, rotation
from llama_jax.model.transposed import filled


class Attention(nn.Module):
    """Multi-head or grouped-query self-attention with rotary positions."""

    config: LlamaConfig
    compute: ComputeConfig

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        rows: Rows,
        cache: LayerCache | None,
    ) -> tuple[Float[Array, "B T D"], LayerCache | None]:
        config, dtype = self.config, jnp.dtype(self.compute.dtype)
        B, T, _ = x.shape

        def heads(name: str, count: int, axis: str) -> Float[Array, "B T heads H"]:
            projected = Linear(count * config.head_size, ("embed", axis), dtype, name=name)(x, rows)
            return constrain(projected.reshape(B, T, count, config.head_size), ("batch", "length", axis, None))

        query = rotate(heads("q_proj", config.num_heads, "heads"), *rows.rotation)
        key = rotate(heads("k_proj", config.num_kv_heads, "kv_heads"), *rows.rotation)
        value = heads("v_proj", config.num_kv_heads, "kv_heads")
        if cache is not None and rows.cached is not None:
            positions, of_cache, longest = rows.cached
            cache = cache.add(key, value, of_cache, positions[:, 0])
            mixed = cached_attention(query, cache, positions, of_cache, longest)
        else:
            mixed = attention(
                query,
                key,
                value,
                query_segments=rows.segment_ids,
                key_segments=rows.segment_ids,
                query_prefixes=rows.prefix_ids,
                implementation=self.compute.attention,
            )
        mixed = mixed.reshape(B, T, -1)
        # The two projections that end on the residual stream start smaller, so that its size does not grow with depth.
        shrink = (2 * config.num_layers) ** -0.5
        return Linear(config.width, ("heads", "embed"), dtype, shrink, name="o_proj")(mixed, rows), cache


class MLP(nn.Module):
    """SwiGLU (Shazeer 2020, arXiv:2002.05202, equation 6): down(silu(gate x) * up x)."""

    config: LlamaConfig
    compute: ComputeConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], rows: Rows) -> Float[Array, "B T D"]:
        config, dtype = self.config, jnp.dtype(self.compute.dtype)
        gate = Linear(config.mlp_width, ("embed", "mlp"), dtype, name="gate_proj")(x, rows)
        up = Linear(config.mlp_width, ("embed", "mlp"), dtype, name="up_proj")(x, rows)
        with jax.named_scope("swiglu"):
            mixed = jax.nn.silu(gate) * up
        shrink = (2 * config.num_layers) ** -0.5
        return Linear(config.width, ("mlp", "embed"), dtype, shrink, name="down_proj")(mixed, rows)


class Block(nn.Module):
    """Attention and MLP, each on a normalised copy of the residual stream."""

    config: LlamaConfig
    compute: ComputeConfig

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        rows: Rows,
        cache: LayerCache | None,
    ) -> tuple[Float[Array, "B T D"], LayerCache | None]:
        def norm(name: str) -> RMSNorm:
            return RMSNorm(self.config.norm_epsilon, jnp.dtype(self.compute.dtype), name=name)

        attended, cache = Attention(self.config, self.compute, name="attention")(norm("attention_norm")(x), rows, cache)
        x = constrain(x + attended, ("batch", "length", "residual"))
        x = x + MLP(self.config, self.compute, name="mlp")(norm("mlp_norm")(x), rows)
        return constrain(x, ("batch", "length", "residual")), cache


class Head(nn.Module):
    """The output matrix of a model with untied embeddings; the product itself is `LanguageModel.unembed`."""

    rows: int
    width: int

    def setup(self) -> None:
        shape = (self.width, self.rows)
        self.kernel = param(self, "kernel", normal(self.width**-0.5), shape, ("embed", "vocab"), decays=True)

    def __call__(self) -> None:
        """Declare the kernel."""
        _ = self.kernel


class ScalarHead(nn.Module):
    """The vector that gives a position its score, a matrix [D, 1] as other formats have it, without bias; the product
    itself is `LanguageModel.scores`."""

    width: int

    def setup(self) -> None:
        # As small as a norm's scale, and kept whole like one.
        self.kernel = param(self, "kernel", drawn_score, (self.width, 1), ("norm", None), decays=False)

    def __call__(self) -> None:
        """Declare the kernel."""
        _ = self.kernel


def drawn_score(key: PRNGKeyArray, shape: tuple[int, int]) -> Float[Array, "D 1"]:
    """A scalar head to begin with: variance 1 / (D + 1), as first published (Stiennon et al. 2020, arXiv:2009.01325,
    in its code)."""
    return normal((shape[0] + 1) ** -0.5)(key, shape)


def _saves_all_but_weights(primitive: Any, *_: Any, **__: Any) -> bool:
    # Casts and gathered copies of weights can be made again from the parameters, which are there anyway; saved, they
    # would hold the whole unsharded model between the forward and the backward pass.
    return primitive.name not in ("sharding_constraint", "convert_element_type", "all_gather")


_SAVED = {
    "none": _saves_all_but_weights,
    "full": jax.checkpoint_policies.nothing_saveable,
    # By name: a policy that keeps every product would keep that of an adapted Linear and what its adapter adds to it,
    # of which only the sum is needed.
    "dots": jax.checkpoint_policies.save_only_these_names(PRODUCTS, CHECKPOINT_NAME),
    "attention": jax.checkpoint_policies.save_only_these_names(CHECKPOINT_NAME),
}
"""What each remat policy keeps from the forward pass of a layer."""


class Llama(nn.Module):
    """The network from tokens to the normalised residual stream, its layers stacked along a leading axis and scanned
    (training, storage)."""

    config: LlamaConfig
    compute: ComputeConfig

    def setup(self) -> None:
        config, compute = self.config, self.compute
        dtype = jnp.dtype(compute.dtype)
        self.embedding = Embedding(config.padded_vocab_size, config.width, dtype)
        block = nn.remat(Block, prevent_cse=False, policy=_SAVED[compute.remat])
        self.layers: Any = nn.scan(
            block,
            variable_axes={"params": 0, "lora": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=nn.broadcast,  # pyright: ignore[reportArgumentType]
            length=config.num_layers,
            unroll=compute.unroll,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(config, compute)
        self.final_norm = RMSNorm(config.norm_epsilon, dtype)
        if config.has_lm_head:
            self.lm_head = Head(config.padded_vocab_size, config.width)
        if config.scalar_head:
            self.score = ScalarHead(config.width)

    def __call__(self, tokens: Int[Array, "B T"], rows: Rows) -> Float[Array, "B T D"]:
        x, _ = self.layers(self.embedding(tokens), rows, None)
        if self.is_initializing() and self.config.has_lm_head:
            self.lm_head()
        if self.is_initializing() and self.config.scalar_head:
            self.score()
        return self.final_norm(x)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _decoded_layer(
    config: LlamaConfig,
    compute: ComputeConfig,
    collections: dict[str, PyTree],
    x: Float[Array, "R T D"],
    rows: Rows,
    cache: LayerCache,
) -> tuple[Float[Array, "R T D"], LayerCache]:
    # Jitted by itself, so that of the layers of a program, which are alike, one is traced.
    return Block(config, compute).apply(collections, x, rows, cache)  # pyright: ignore[reportReturnType]


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A LLaMA as pure functions of its parameters, a tree of plain dictionaries and arrays.

    Compared and hashed by identity, so that it can be a static argument of jitted functions.
    """

    config: LlamaConfig
    compute: ComputeConfig
    init: Callable[[PRNGKeyArray], PyTree]
    """Fresh float32 parameters, scanned layout."""
    axes: PyTree
    """Logical axes of each parameter, as a `PartitionSpec` of names."""
    decays: frozenset[str]
    """Paths of the parameters that weight decay applies to."""
    dropout: float = 0.0
    """Rate of the dropout before the factors of an adapter, in training only."""

    def hidden(
        self,
        params: PyTree,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"] | None = None,
        segment_ids: Int[Array, "B T"] | None = None,
        rng: PRNGKeyArray | None = None,
        adapter_ids: Int[Array, "B"] | None = None,
        prefix_ids: Int[Array, "B T"] | None = None,
    ) -> Float[Array, "B T D"]:
        """The normalised residual stream at each position of a row (scanned layout).

        Args:
            positions: Of each token in its document, from 0; None: its place in the row.
            segment_ids: Document of each token in its row, across which attention never looks; None: one document a
                row, padded if at all behind its end.
            rng: Key of the dropout; None: there is none.
            adapter_ids: The adapter of each row, where `params` holds several.
            prefix_ids: Of each token a second document that it sees, such as a prompt that completions share, its own
                where there is none; None: no token sees another. TPU's and GPU's kernels for attention cannot do this.
        """
        network = Llama(self.config, self.compute)
        dropout = 0.0 if rng is None else self.dropout
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        rows = Rows(rotation(self.config, positions), segment_ids, None, adapter_ids, dropout, prefix_ids)
        rngs = {"dropout": rng} if dropout else None
        return network.apply(_collections(params), tokens, rows, rngs=rngs)  # pyright: ignore

    def logits(self, params: PyTree, tokens: Int[Array, "B T"]) -> Float[Array, "B T V"]:
        """Logits of the next token after each position, float32, one document a row (scanned layout)."""
        return self.unembed(self.head(params), self.hidden(params, tokens))[..., : self.config.vocab_size]

    def head(self, params: PyTree) -> Weight:
        """The output matrix as `unembed` multiplies by it, cast and gathered. Call it once, outside of any loop.

        Raises:
            UserError: the model has none, but a scalar head.
        """
        if self.config.scalar_head:
            raise UserError("the model has a scalar head: it scores text and predicts none")
        dtype = jnp.dtype(self.compute.dtype)
        if "lm_head" not in params:
            return gathered(params["embedding"]["table"], ("vocab", "embed"), dtype).T
        return gathered_weight(params["lm_head"]["kernel"], ("embed", "vocab"), dtype)

    @jax.named_scope("unembed")
    def unembed(self, head: Weight, hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch V"]:
        """Logits over the padded vocabulary, float32; ids beyond `vocab_size` get a logit that no softmax can see."""
        logits = matmul(hidden, head).astype(jnp.float32)
        if self.config.padded_vocab_size == self.config.vocab_size:
            return logits
        return jnp.where(jnp.arange(logits.shape[-1]) < self.config.vocab_size, logits, MASKED)

    @jax.named_scope("scores")
    def scores(self, params: PyTree, hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch"]:
        """What the scalar head says at each position of the residual stream, float32, in float32 whatever the type of
        computation: of a row read up to there. A reward is read at the last token of a text, a value at each.

        Args:
            params: Of which only `score` is read, so that a head may stand beside any base.
        """
        kernel = params["score"]["kernel"][:, 0].astype(jnp.float32)
        return jnp.einsum("...D,D->...", hidden.astype(jnp.float32), kernel, precision="highest")

    def decode(
        self,
        params: PyTree,
        tokens: Int[Array, "R T"],
        caches: list[LayerCache],
        start: Int[Array, "R"],
        adapter_ids: Int[Array, "R"] | None = None,
        *,
        rows: Int[Array, "R"] | None = None,
        longest: Int[Array, ""] | None = None,
    ) -> tuple[Float[Array, "R T D"], list[LayerCache]]:
        """Read T tokens of each row into the caches from slot `start` on (list layout, see `unstacked`).

        Args:
            rows: of the caches, to which the tokens belong; a number beyond the rows: to none. None: all in their
                order.
            longest: slots of the longest row that matters, its new tokens included; what further slots hold may be
                overlooked. None: that of all rows.
        """
        config, compute = self.config, self.compute
        positions = start[:, None] + jnp.arange(tokens.shape[1])[None]
        longest = positions.max() + 1 if longest is None else longest
        told = Rows(rotation(config, positions), None, Cached(positions, rows, longest), adapter_ids)
        dtype, collections = jnp.dtype(compute.dtype), _collections(filled(params))

        def of(name: str) -> dict[str, PyTree]:
            return {kind: parts[name] for kind, parts in collections.items() if name in parts}

        x: Any = Embedding(config.padded_vocab_size, config.width, dtype).apply(of("embedding"), tokens)
        after = []
        for number, cache in enumerate(caches):
            x, cache = _decoded_layer(config, compute, of(f"layers_{number}"), x, told, cache)
            after.append(cache)
        x, after = settled(x, after, rows, start)
        return RMSNorm(config.norm_epsilon, dtype).apply(of("final_norm"), x), after  # pyright: ignore[reportReturnType]

    def parameter_count(self) -> int:
        """Number of parameters, rows of vocabulary padding left out."""
        padding = self.config.padded_vocab_size - self.config.vocab_size
        tables = 2 if self.config.has_lm_head else 1
        return tree.size(self.shapes()) - tables * padding * self.config.width

    def shapes(self) -> PyTree:
        """Shape and type of each parameter."""
        return jax.eval_shape(lambda: self.init(jax.random.key(0)))


def language_model(config: LlamaConfig, compute: ComputeConfig, dropout: float = 0.0) -> LanguageModel:
    """The pure functions of a LLaMA; `dropout` is the rate before the factors of an adapter, in training."""
    # One token is enough to declare the parameters, but too short a row for the faster kinds of attention.
    network = Llama(config, dataclasses.replace(compute, attention="xla"))
    token = jnp.zeros((1, 1), jnp.int32)

    def boxed(key: PRNGKeyArray) -> PyTree:
        return network.init(key, token, Rows(rotation(config, token)))["params"]

    declared = jax.eval_shape(boxed, jax.random.key(0))
    axes = nn.get_partition_spec(declared)
    return LanguageModel(config, compute, lambda key: nn.unbox(boxed(key)), axes, decaying(declared), dropout)


def _collections(params: PyTree) -> dict[str, PyTree]:
    """The tree as Linen takes it: the adapter in a collection of its own."""
    base, adapter = without_adapter(params)
    return {"params": base} if adapter is None else {"params": base, "lora": adapter}


def unstacked(params: PyTree) -> PyTree:
    """The list layout of scanned parameters, an adapter's included: `layers_0`, `layers_1`, … in place of `layers`."""
    rest = {name: subtree for name, subtree in params.items() if name not in ("layers", "lora")}
    if "lora" in params:
        rest["lora"] = unstacked(params["lora"])
    count = jax.tree.leaves(params["layers"])[0].shape[0]
    layers = {f"layers_{i}": jax.tree.map(lambda leaf, i=i: leaf[i], params["layers"]) for i in range(count)}
    return rest | layers
