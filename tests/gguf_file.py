"""GGUF files of tiny models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf


def write_gguf(file: Path, model: Any) -> None:
    """A Llama with matrices of 8 bits, and a tokenizer whose tokens are single characters."""
    config, writer = model.config, gguf.GGUFWriter(file, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    letters = [chr(code) for code in range(33, 127)]
    special = ["<s>", "</s>", "<unk>"]
    tokens = [*special, *letters]
    tokens += [f"<{n}>" for n in range(len(tokens), config.vocab_size)]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    writer.add_token_scores([-float(at) for at in range(len(tokens))])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    kind = gguf.GGMLQuantizationType.Q8_0
    for name, tensor in model.state_dict().items():
        numbers, known = tensor.numpy(), names.get_name(name, try_suffixes=(".weight",))
        if numbers.ndim == 2:
            writer.add_tensor(known, gguf.quants.quantize(numbers, kind), raw_dtype=kind)
        else:
            writer.add_tensor(known, numbers)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
