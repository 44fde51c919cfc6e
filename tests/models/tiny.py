"""A tiny random model for each causal class of the installed transformers.

Sizes come from ``SMALL``, a table of the names that configurations commonly use; ``OVERRIDES`` has
what a configuration needs beside or instead of that. ``KNOWN_UNBUILDABLE`` says why a name has no
tiny model here.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
)

NAMES = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
WINDOW = 32
CHUNK = 16
VOCABULARY = 128
LAYERS = 4

SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 64,
    "n_inner": 64,
    "ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "encoder_ffn_dim": 64,
    "num_hidden_layers": LAYERS,
    "num_layers": LAYERS,
    "decoder_layers": LAYERS,
    "encoder_layers": LAYERS,
    "depth": 2,
    "num_attention_heads": 4,
    "num_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "seq_length": 512,
    "sliding_window": WINDOW,
    "attention_chunk_size": CHUNK,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "rotary_dim": 8,
    "index_topk": 16,
    # Few heads would often score exactly 0, and of equal scores any may be among the first.
    "index_n_heads": 16,
    "index_head_dim": 32,
    "conv_kernel": 4,
    "conv_kernel_size": 4,
    "ssm_state_size": 8,
    "state_size": 8,
    "chunk_size": CHUNK,
    "mamba_n_heads": 4,
    "n_mamba_heads": 4,
    "mamba_num_heads": 8,
    "mamba_head_dim": 16,
    "mamba_d_state": 8,
    "mamba_d_ssm": 64,
    "mamba_chunk_size": CHUNK,
    "linear_head_dim": 16,
    "linear_num_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 2,
    "swa_head_dim": 16,
    "sliding_window_size": WINDOW,
    "expert_ffn_hidden_size": 32,
    "ffn_hidden_size": 64,
    "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size_per_layer_input": 8,
    "out_hidden_size": 64,
    "image_size": 28,
    "patch_size": 14,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "is_decoder": True,
    "tie_word_embeddings": False,
}

_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_HYBRID = ["linear_attention", "full_attention"] * 2
_SHARED = {
    "num_hidden_layers": 8,
    "num_kv_shared_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 4,
}

# `...` takes an argument of `SMALL` out.
OVERRIDES: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1, 3]},
    "blt": {
        "patcher_config": {"hidden_size": 32},
        "encoder_config": {"hidden_size": 32, "hidden_size_global": 64},
        "decoder_config": {"hidden_size": 32, "hidden_size_global": 64},
        "encoder_hash_byte_group_vocab": 512,
        "encoder_hash_byte_group_size": [3, 4],
        "vocab_size": 260,
    },
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "rope_parameters": {
            "sliding_attention": _ROPE | {"mrope_section": [4, 2, 2]},
            "full_attention": None,
        },
    },
    "cpmant": {"dim_head": 16, "dim_ff": 64, "hidden_size": 64, "prompt_length": 4},
    "ctrl": {"dff": 64},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 64, "hidden_size": 64},
    },
    "deepseek_v4": {
        "head_dim": 16,
        "num_key_value_heads": 1,
        "o_groups": 2,
        "o_lora_rank": 16,
        "compress_rates": {
            "compressed_sparse_attention": 4,
            "heavily_compressed_attention": CHUNK,
        },
        "layer_types": [
            "sliding_attention",
            "compressed_sparse_attention",
            "heavily_compressed_attention",
            "compressed_sparse_attention",
        ],
        "mlp_layer_types": ["hash_moe", "moe", "moe", "moe"],
    },
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dory": {
        "n_input_layers": 1,
        "n_recurrent_layers": 2,
        "n_output_layers": 1,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "dots1": {
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "dots3_note": {
        "vision_config": {"per_layer_config": {}, "adapter_in_dim": 64, "adapter_out_dim": 64},
        "audio_config": {"adapter_input_size": 64, "adapter_out_dim": 64},
    },
    "dots3_note_text": {
        "sliding_window": WINDOW,
        "layer_types": ["indexed_attention", "sliding_attention"] * 2,
        "shared_experts_intermediate_size": 32,
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 4,
        "swa_q_lora_rank": 24,
        "swa_kv_lora_rank": 16,
        "swa_head_dim": 24,
        "swa_qk_nope_head_dim": 16,
        "swa_qk_rope_head_dim": 8,
        "swa_v_head_dim": 16,
    },
    "falcon_h1": {"attention_out_multiplier": 2.0},
    "gemma3n_text": _SHARED,
    "gemma4_text": _SHARED,
    "gemma4_unified_text": _SHARED,
    "got_ocr2": {
        "vision_config": {"output_channels": 16, "mlp_dim": 64, "global_attn_indexes": [1]}
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": WINDOW},
    "granitemoehybrid": {"layer_types": _HYBRID, "shared_intermediate_size": 32},
    "hunyuan_v1_dense": {"head_dim": 16, "num_key_value_heads": 2},
    "hunyuan_v1_moe": {"head_dim": 16, "num_key_value_heads": 2},
    "inkling_text": {"rel_extent": 32, "layer_types": ["hybrid", "hybrid_sliding"] * 2},
    "inkling2_loop_text": {
        "rel_extent": 32,
        "unpadded_vocab_size": VOCABULARY,
        "loop_layer_index_start": 1,
        "loop_layer_index_end": 3,
        "n_layers_per_attn_res_block": 1,
        "loop_num_passes": 2,
        "loop_gate_rank": 8,
        "layer_types": ["hybrid_sliding", "hybrid"] * 2,
    },
    "inkling2_text": {"rel_extent": 32, "unpadded_vocab_size": VOCABULARY},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "lfm3": {"layer_types": ["conv", "full_attention"] * 2},
    "longcat_flash": {"moe_topk": 2, "zero_expert_num": 2},
    "mamba2": {"num_heads": 8, "head_dim": 16, "n_groups": 2},
    "minimax_m3_vl_text": {
        "dense_intermediate_size": 64,
        "shared_intermediate_size": 32,
        "intermediate_size": 32,
        "index_n_heads": 2,
        "index_head_dim": 16,
        "index_block_size": 8,
        "index_topk_blocks": 2,
        "layer_types": ["full_attention", "minimax_m3_sparse"] * 2,
    },
    "ministral": {"head_dim": 16, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "nemotron": {"head_dim": 16, "num_key_value_heads": 2},
    "nemotron_h": {
        "num_hidden_layers": ...,
        "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"],
        "moe_shared_expert_intermediate_size": 32,
        "n_groups": 2,
    },
    "phi4_multimodal": {
        "vision_config": {"crop_size": 28},
        "audio_config": {
            "num_blocks": 1,
            "ext_pw_out_channel": 64,
            "depthwise_separable_out_channel": 64,
            "nemo_conv_channels": 64,
        },
    },
    "qwen4_exp_text": {
        "hc_lowrank": 8,
        "ngram_vocab_size_base": 64,
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 16,
        "indexer_compress_ratio": 4,
        "rope_parameters": _ROPE,
    },
    "reformer": {
        "attention_head_size": 16,
        "axial_pos_embds_dim": [16, 48],
        "axial_pos_shape": [16, 32],
        "feed_forward_size": 64,
        "local_attn_chunk_length": CHUNK,
        "lsh_attn_chunk_length": CHUNK,
        "attn_layers": ["local", "lsh"] * 2,
        "num_buckets": 4,
    },
    "roc_bert": {
        "pronunciation_embed_dim": 16,
        "pronunciation_vocab_size": VOCABULARY,
        "shape_embed_dim": 16,
        "shape_vocab_size": VOCABULARY,
    },
    "xlm": {"mask_token_id": 5},
    "xlnet": {"d_inner": 64, "d_head": 16},
    "xlstm": {"num_heads": 4, "ffn_round_up_to_multiple_of": 16, "qk_dim_factor": 1.0},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"]},
    "zamba2": {
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
        "n_mamba_heads": 8,
        "num_key_value_heads": 4,
    },
    "zaya": {
        "num_experts_per_tok": 1,
        "router_hidden_size": 16,
        "sliding_window": WINDOW,
        "layer_types": ["hybrid", "hybrid_sliding"] * 2,
    },
}

_ASSISTANT = "drafts for another model from that model's keys and values; it has none of its own"
_AUDIO = "its `generate()` takes no text: it makes codes of audio, each codebook one step later"
KNOWN_UNBUILDABLE: dict[str, str] = {
    "blt": "`generate()` of transformers fails: its configuration has no count of layers",
    "gemma3n": "needs the package timm; its text model is `gemma3n_text`",
    "gemma4_assistant": _ASSISTANT,
    "gemma4_unified_assistant": _ASSISTANT,
    "musicgen": _AUDIO,
    "musicgen_melody": _AUDIO,
}


def _defaults(kind: type[PreTrainedConfig]) -> dict[str, Any]:
    """Every value that a configuration of this class has when nothing is given."""
    return kind().to_dict()


def _sizes(kind: type[PreTrainedConfig], given: dict[str, Any]) -> dict[str, Any]:
    """Arguments for a small configuration; ``given`` goes before everything."""
    default = _defaults(kind)
    sizes: dict[str, Any] = {}
    for name, value in SMALL.items():
        key = kind.attribute_map.get(name, name)
        if default.get(key) is not None:
            sizes[key] = value
    if default.get("layer_types"):
        layers = given.get("num_hidden_layers", LAYERS)
        sizes["layer_types"] = (list(dict.fromkeys(default["layer_types"])) * layers)[:layers]
    if "qk_rope_head_dim" in default:
        # Multi-head latent attention: a head has its own keys, partly rotated.
        sizes |= {"num_key_value_heads": 4, "head_dim": 8}
    for key, part in kind.sub_configs.items():
        if isinstance(default.get(key), dict):
            if part.__name__ == "AutoConfig":
                part = CONFIG_MAPPING[default[key]["model_type"]]
            sizes[key] = _sizes(part, OVERRIDES.get(part.model_type, {}))
    for key, value in given.items():
        if isinstance(value, dict) and isinstance(sizes.get(key), dict):
            sizes[key] |= value
        else:
            sizes[key] = value
    return {key: value for key, value in sizes.items() if value is not ...}


def tiny_config(name: str) -> PreTrainedConfig:
    """A small configuration of the kind that transformers knows by this name."""
    kind = CONFIG_MAPPING[name]
    config = kind(**_sizes(kind, OVERRIDES.get(name, {})))
    # The class may be that of a part alone, as `AutoModelForCausalLM` knows of `text_config`.
    wanted = MODEL_FOR_CAUSAL_LM_MAPPING[kind].config_class
    parts = [key for key, part in kind.sub_configs.items() if part is wanted]
    return getattr(config, parts[0]) if parts and wanted is not kind else config


def _draw(model: Any, gain: float, embedding: float) -> None:
    """Weights so wide that the text depends on the context; the same each time."""
    generator = torch.Generator().manual_seed(0)
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim < 2:
                continue
            width = embedding if id(parameter) in embeddings else gain / parameter.shape[-1] ** 0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * width)


def some_ids(model: Any, count: int, seed: int) -> list[int]:
    """Random ids that the model knows, no special ones."""
    known = min(VOCABULARY, model.config.get_text_config(decoder=True).vocab_size)
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, known, (count,), generator=generator).tolist()


def greedy(model: Any, tokens: int, **arguments: Any) -> list[list[int]]:
    """What the model says after each row of ``input_ids``."""
    with torch.no_grad():
        output = model.generate(
            **arguments,
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
    return output[:, arguments["input_ids"].shape[1] :].tolist()


def tiny_model(name: str) -> Any:
    """A model of under a million parameters whose text depends on all of its context.

    Raises:
        ValueError: It is too large, or no weights were found that make it depend on its context.
    """
    config = tiny_config(name)
    kind = MODEL_FOR_CAUSAL_LM_MAPPING[CONFIG_MAPPING[name]]
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in kind(config).parameters())
    if size > 1_500_000:
        raise ValueError(f"{size:,} parameters")
    torch.manual_seed(0)
    model = kind(config).eval()
    model.generation_config.eos_token_id = None
    first = some_ids(model, 72, seed=1)
    other = some_ids(model, 40, seed=2) + first[40:]
    rows = torch.tensor([first, other])
    best, found = 0, None
    for gain, embedding in itertools.product((1.5, 3.0, 6.0, 0.7), (1.0, 0.1)):
        _draw(model, gain, embedding)
        texts = greedy(model, 8, input_ids=rows, attention_mask=torch.ones_like(rows))
        kinds = min(len(set(text)) for text in texts)
        if texts[0] != texts[1] and kinds > best:
            best, found = kinds, (gain, embedding)
        if best > 2:
            return model
    if found is None:
        raise ValueError("its text does not depend on its context")
    _draw(model, *found)
    return model
