"""Why a card refuses a model: what docs/models.md says, and what the test expects."""

from __future__ import annotations

_STATE = "some layers keep a recurrent or convolution state, which a card cannot carry yet"
_INDEXED = "its layers keep an indexer's keys beside the cache"
_NO_CACHE = "its state is not in a `DynamicCache`"
_POSITIONS = "without `position_ids` it counts positions from another number than `generate()` does"

EXPECTED_REFUSED: dict[str, str] = {
    **dict.fromkeys(
        (
            "bailing_hybrid",
            "bamba",
            "falcon_h1",
            "falcon_mamba",
            "granitemoehybrid",
            "inkling2_text",
            "inkling_text",
            "jamba",
            "kimi_linear",
            "lfm2",
            "lfm2_moe",
            "lfm3",
            "mamba",
            "mamba2",
            "minimax",
            "nemotron_h",
            "olmo_hybrid",
            "qwen3_5",
            "qwen3_5_moe",
            "qwen3_5_moe_text",
            "qwen3_5_text",
            "qwen3_next",
            "qwen4_exp",
            "qwen4_exp_text",
            "recurrent_gemma",
            "zamba",
            "zamba2",
            "zaya",
        ),
        _STATE,
    ),
    **dict.fromkeys(
        ("axk2", "deepseek_v32", "dots3_note", "dots3_note_text", "glm_moe_dsa", "hy_v4"), _INDEXED
    ),
    **dict.fromkeys(("openai-gpt", "reformer", "rwkv", "xlm", "xlnet", "xlstm"), _NO_CACHE),
    **dict.fromkeys(
        (
            "camembert",
            "data2vec-text",
            "roberta",
            "roberta-prelayernorm",
            "xlm-roberta",
            "xlm-roberta-xl",
            "xmod",
        ),
        _POSITIONS,
    ),
    "cpmant": "it puts tokens of its own before the text, and takes the whole text at each step",
    "deepseek_v4": "some layers keep compressed keys in a cache of the model's own",
    "minimax_m3_vl_text": "some layers keep block keys in a cache of the model's own",
    "mllama": "its layers of cross-attention have no state without an image",
    "prophetnet": "its cache takes one token at a time",
    "moshi": "transformers' own cache of it forgets tokens that its attention still looks at",
}
