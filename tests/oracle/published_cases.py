"""The sweep over directories of published models: what is changed in each, and what a refusal must name."""

from published_models import (
    ANGLES,
    EMBEDDING,
    HEAD,
    LENGTH,
    SHARDS,
    Change,
    all_of,
    config,
    copied_head,
    in_shards,
    nothing,
    renamed,
    rope,
    tensors,
    tokenizer_config,
    without,
    without_model,
)

LLAMA2, LLAMA31, LLAMA32 = "Llama-2-7b-hf", "Llama-3.1-8B-Instruct", "Llama-3.2-1B-Instruct"
CODE, TINY, VICUNA, MISTRAL = "CodeLlama-7b-hf", "TinyLlama-1.1B-Chat-v1.0", "vicuna-7b-v1.5-16k", "Mistral-7B-v0.3"
SMOL, FALCON, NEMO = "SmolLM2-135M", "Falcon3-1B-Base", "Mistral-Nemo-Base-2407"
MADE_DEFAULT = {"rope_type": "default", "rope_theta": 10000.0}

CASES: dict[str, tuple[str, Change, str | None]] = {
    # As published.
    "Llama 2": (LLAMA2, nothing, None),
    "LLaMA": ("llama-7b", nothing, None),
    "open_llama": ("open_llama_3b", nothing, None),
    "Code Llama": (CODE, nothing, None),
    "TinyLlama": (TINY, nothing, None),
    "Yi": ("Yi-6B", nothing, None),
    "DeepSeek LLM": ("deepseek-llm-7b-base", nothing, None),
    "Llama 3": ("Meta-Llama-3-8B", nothing, None),
    "Llama 3.1": (LLAMA31, nothing, None),
    "Llama 3.2": (LLAMA32, nothing, None),
    "SmolLM2": (SMOL, nothing, None),
    "Falcon3": (FALCON, nothing, None),
    "Mistral 0.3": (MISTRAL, nothing, None),
    "Mistral Nemo": (NEMO, nothing, None),
    "Vicuna of 16k": (VICUNA, nothing, "rope_scaling: type is 'linear'"),
    # The rotary base, in both spellings.
    "Llama 2 by transformers 5": (
        LLAMA2,
        all_of(renamed(torch_dtype="dtype"), config(rope_scaling=None, rope_theta=None, rope_parameters=MADE_DEFAULT)),
        None,
    ),
    "a base in both spellings": (CODE, config(rope_parameters=MADE_DEFAULT | {"rope_theta": 1000000.0}), None),
    "a base within rope_scaling": (
        CODE,
        config(rope_theta=None, rope_scaling={"type": "default", "rope_theta": 1000000.0}),
        None,
    ),
    "a base within rope_parameters alone": (CODE, config(rope_theta=None, rope_parameters={"rope_theta": 1e6}), None),
    "two bases": (CODE, config(rope_parameters=MADE_DEFAULT), "rope_theta is 1000000, but rope_theta of rope_param"),
    "two bases of two places": (
        CODE,
        config(
            rope_theta=None, rope_scaling={"rope_type": "default"}, rope_parameters=MADE_DEFAULT | {"rope_theta": 2e4}
        ),
        "rope_theta of rope_scaling is 10000.0, but rope_theta of rope_parameters is 20000.0",
    ),
    "rope_scaling default beside rope_parameters": (
        LLAMA2,
        config(rope_parameters=MADE_DEFAULT, rope_scaling={"rope_type": "default"}),
        None,
    ),
    "an empty rope_scaling": (CODE, config(rope_scaling={}), None),
    "no base": (LLAMA2, config(rope_theta=None), None),
    "a base of next to nothing": (LLAMA2, config(rope_theta=1e-300), "rope_theta is 1e-300"),
    # Its scaling.
    "Llama 3.1 by an older version": (LLAMA31, config(rope_scaling=rope(rope_type=None, type="llama3")), None),
    "Llama 3.1 by transformers 5": (
        LLAMA31,
        config(rope_theta=None, rope_scaling=None, rope_parameters=rope(rope_theta=500000.0)),
        None,
    ),
    "a scaling in both spellings": (LLAMA31, config(rope_parameters=rope(rope_theta=500000.0, factor=8)), None),
    "type and rope_type": (LLAMA31, config(rope_scaling=rope(type="llama3")), None),
    "type against rope_type": (LLAMA31, config(rope_scaling=rope(type="linear")), "rope_type is 'llama3', but type is"),
    "two scalings": (LLAMA31, config(rope_parameters=rope(factor=4.0)), "rope_scaling is .*, but rope_parameters is"),
    "a scaling and none": (
        LLAMA31,
        config(rope_parameters=MADE_DEFAULT | {"rope_theta": 500000.0}),
        "rope_scaling is .*, but rope_parameters is",
    ),
    "a length at the top level": (
        LLAMA31,
        config(rope_scaling=rope(original_max_position_embeddings=None), original_max_position_embeddings=LENGTH),
        None,
    ),
    "two lengths": (
        LLAMA31,
        config(original_max_position_embeddings=LENGTH // 2),
        "original_max_position_embeddings is 32, but original_max_position_embeddings of rope_scaling is 64",
    ),
    "a scaling by 1": (LLAMA31, config(rope_scaling=rope(factor=1.0)), None),
    "factors that are equal": (LLAMA31, config(rope_scaling=rope(low_freq_factor=4.0)), "high_freq_factor is 4.0"),
    "a factor that is missing": (LLAMA31, config(rope_scaling=rope(low_freq_factor=None)), "lacks low_freq_factor"),
    "linear by 1": (VICUNA, config(rope_scaling={"factor": 1.0, "type": "linear"}), None),
    "linear by 1 beside none": (
        VICUNA,
        config(rope_scaling={"factor": 1, "rope_type": "linear", "type": "linear"}, rope_parameters=MADE_DEFAULT),
        None,
    ),
    "linear beside none": (VICUNA, config(rope_parameters=MADE_DEFAULT), "rope_scaling: type is 'linear'"),
    "none beside linear": (
        VICUNA,
        config(rope_scaling={"type": "default"}, rope_parameters={"rope_type": "linear", "factor": 4.0}),
        "rope_parameters: rope_type is 'linear'",
    ),
    "dynamic": (VICUNA, config(rope_scaling={"type": "dynamic", "factor": 2.0}), "type is 'dynamic'"),
    "yarn": (
        VICUNA,
        config(
            rope_scaling={"factor": 16.0, "original_max_position_embeddings": 64, "type": "yarn", "finetuned": True}
        ),
        "type is 'yarn'",
    ),
    "a factor of no type": (VICUNA, config(rope_scaling={"factor": 4.0}), "rope_scaling: lacks type"),
    "a factor of default": (VICUNA, config(rope_scaling={"rope_type": "default", "factor": 4.0}), "'factor' is 4.0"),
    "half of each head at the top level": (SMOL, config(partial_rotary_factor=0.5), "partial_rotary_factor is 0.5"),
    "all of each head": (SMOL, config(partial_rotary_factor=1.0), None),
    # The other fields.
    "both names of the type": (LLAMA2, config(dtype="float32"), None),
    "two types": (LLAMA2, config(dtype="bfloat16"), "dtype is 'bfloat16', but torch_dtype is 'float32'"),
    "sizes that are null": (LLAMA2, config(num_key_value_heads="null", head_dim="null", rope_parameters="null"), None),
    "what has a default": (
        LLAMA2,
        config(hidden_act=None, max_position_embeddings=None, rms_norm_eps=None, tie_word_embeddings=None),
        None,
    ),
    "fields of nobody": (LLAMA2, config(rope_interleaved=True, sliding_window=16, final_logit_softcapping=30.0), None),
    "a head size of its own": (FALCON, config(architectures=["MistralForCausalLM"]), None),
    "biases": (LLAMA2, config(attention_bias=True), "attention_bias is True"),
    "attention to what comes": (LLAMA2, config(is_causal=False), "is_causal is False"),
    "layers that differ": (LLAMA2, config(per_layer_config={"1": {"rms_norm_eps": 0.1}}), "per_layer_config is"),
    "another activation": (LLAMA2, config(hidden_act="gelu"), "hidden_act is 'gelu'"),
    "quantised": (LLAMA2, config(quantization_config={"quant_method": "bitsandbytes"}), "quantization_config is set"),
    "no model_type": (LLAMA2, config(model_type=None), "lacks model_type"),
    "a vocabulary of more": (LLAMA2, config(vocab_size=999), "embed_tokens.weight has shape"),
    "a window": (MISTRAL, config(sliding_window=32), "sliding_window is 32, less than max_position_embeddings 256"),
    "a window as wide as the context": (MISTRAL, config(sliding_window=256), None),
    "the window of a default": (MISTRAL, config(sliding_window=None), "lacks sliding_window"),
    # The weights.
    "the head alone": (LLAMA32, tensors(embedding=HEAD), None),
    "head and embedding": (LLAMA32, copied_head(), None),
    "another head": (LLAMA32, copied_head(0.5), "lm_head.weight differs from model.embed_tokens.weight"),
    "neither": (LLAMA32, tensors(embedding=None), "lacks tensor model.embed_tokens.weight"),
    "tied by default": (LLAMA32, config(tie_word_embeddings=None), "lacks tensor lm_head.weight"),
    "no head": (LLAMA2, tensors(head=None), "lacks tensor lm_head.weight"),
    "no embedding": (LLAMA2, tensors(embedding=None), "lacks tensor model.embed_tokens.weight"),
    "a model without its head": (SMOL, without_model, None),
    "two shards": (LLAMA2, in_shards(), None),
    "angles in index and shard": (LLAMA2, in_shards(ANGLES), None),
    "angles in the index": (LLAMA2, in_shards(index={ANGLES: SHARDS[1]}), None),
    "angles in a shard": (LLAMA2, in_shards(ANGLES, index={ANGLES: ""}), None),
    "shards with a dot": (TINY, in_shards(start="./"), None),
    "a head in the index": (SMOL, in_shards(index={HEAD: SHARDS[1]}), None),
    "a head in a shard": (SMOL, in_shards(HEAD, index={HEAD: ""}), None),
    "an embedding that the index has elsewhere": (LLAMA2, in_shards(index={EMBEDDING: SHARDS[1]}), "embed_tokens"),
    "a norm that the index leaves out": (LLAMA2, in_shards(index={"model.norm.weight": ""}), "model.norm.weight"),
    # The tokenizer.
    "no tokenizer_config": (LLAMA2, without("tokenizer_config.json"), None),
    "tokenizer.json alone": (TINY, without("tokenizer.model"), None),
    "tokenizer.json without its config": (TINY, without("tokenizer.model", "tokenizer_config.json"), None),
    "Llama 3 without its tokenizer_config": (LLAMA31, without("tokenizer_config.json"), None),
    "byte-level without its tokenizer_config": (SMOL, without("tokenizer_config.json"), None),
    "no BOS": (LLAMA2, tokenizer_config(add_bos_token=False), None),
    "an EOS": (LLAMA2, tokenizer_config(add_eos_token=True), None),
    "a legacy tokenizer": (LLAMA2, tokenizer_config(legacy=True), None),
    "the class of transformers 5": (
        TINY,
        tokenizer_config(tokenizer_class="TokenizersBackend", backend="tokenizers"),
        None,
    ),
    "the fast class": (TINY, tokenizer_config(tokenizer_class="LlamaTokenizerFast"), None),
}
"""By name: model, change, and a pattern for the one line that refuses it; None: it opens."""
