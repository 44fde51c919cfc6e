"""Why a card refuses a model: what docs/models.md says, and what the test expects."""

from __future__ import annotations

_NO_CACHE = "its state is not in a `DynamicCache`"

EXPECTED_REFUSED: dict[str, str] = {
    **dict.fromkeys(("openai-gpt", "reformer", "rwkv", "xlm", "xlnet", "xlstm"), _NO_CACHE),
    "recurrent_gemma": "its state is in its modules",
    "cpmant": "it puts tokens of its own before the text, and takes the whole text at each step",
    "prophetnet": "its cache takes one token at a time",
    "moshi": "transformers' own cache of it forgets tokens that its attention still looks at",
}
