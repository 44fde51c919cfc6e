"""The identity of a live model and tokenizer: digests of content, never of names."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import msgspec
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...card import Identity
from ...card.digest import digest_json
from ...card.errors import UnsupportedModelError
from ...codecs import DTYPES
from .config import says, text_config
from .departures import departures
from .fingerprint import Survey, survey
from .rope import rope_parameters
from .text_only import require_no_dropout, require_no_prompt_vectors
from .weights import Weights, weights_of

# Differ between two loads of the same model, and do not change what a cache means.
_VOLATILE = {
    "architectures", "bos_token_id", "dtype", "eos_token_id", "output_attentions",
    "output_hidden_states", "pad_token_id", "return_dict", "torch_dtype", "transformers_version",
    "use_cache",
}  # fmt: skip

# Of a tokenizer of the package tokenizers, and of its model.
_STEPS = "normalizer", "pre_tokenizer", "post_processor", "decoder"
_OPTIONS = (
    "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk",
    "byte_fallback", "ignore_merges", "max_input_chars_per_word",
)  # fmt: skip

_configs: WeakKeyDictionary[nn.Module, tuple[object, str]] = WeakKeyDictionary()
_tokenizers: WeakKeyDictionary[Any, tuple[object, str]] = WeakKeyDictionary()


def identify(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None) -> Identity:
    """What a cache of ``model`` is bound to.

    The weights are hashed as they are in memory, once a model object, and again when a tensor was
    replaced, changed in place, or changed where a sample of 8 values per tensor shows it. (A write
    through ``.data`` that misses the sample is not seen once the first digest is taken.) What else
    the model computes with counts to ``config``, see `departures`.

    Raises `UnsupportedModelError`.
    """
    dtype = str(model.dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise UnsupportedModelError(
            f"the model is in {dtype}; a card carries {', '.join(sorted(DTYPES))}."
        )
    require_no_prompt_vectors(model)
    found = survey(model)
    require_no_dropout(found.training)
    weights = weights_of(model, found)
    template = getattr(tokenizer, "chat_template", None) or ""
    return Identity(
        weights=weights.digest,
        config=_config_digest(model, found, weights),
        adapter=weights.adapter,
        rope=msgspec.json.encode(rope_parameters(model), order="sorted").decode(),
        dtype=dtype,
        tokenizer=None if tokenizer is None else tokenizer_digest(tokenizer),
        chat_template=None if tokenizer is None else digest_json(template),
    )


def _config_digest(model: PreTrainedModel, found: Survey, weights: Weights) -> str:
    """Of what the configuration says, and of what the model computes besides."""
    config = text_config(model)
    # To find what differs from the defaults takes long; what a configuration says does not.
    said = says(config)
    seen, known = (said, found.traits, weights.seen), _configs.get(model)
    if known is None or known[0] != seen:
        differs, besides = _stable(_effective(config.to_diff_dict())), departures(model, said)
        known = _configs[model] = seen, digest_json([differs, besides] if besides else differs)
    return known[1]


def _effective(config: dict[str, Any]) -> dict[str, Any]:
    """Without the file that the weights came from, where what is in memory says all of them."""
    origin = config.get("quantization_config")
    if isinstance(origin, dict) and (origin.get("dequantize") or "gguf_file" in origin):
        return {name: at for name, at in config.items() if name != "quantization_config"}
    return config


def _stable(value: Any) -> Any:
    """A configuration without what differs from load to load, in JSON types."""
    if isinstance(value, dict):
        kept = {str(k): v for k, v in value.items() if k not in _VOLATILE}
        return {k: _stable(v) for k, v in kept.items() if not k.startswith("_")}
    if isinstance(value, (list, tuple)):
        return [_stable(item) for item in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """What `Identity.tokenizer` says of a tokenizer."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    seen, known = _tokenizer_fingerprint(tokenizer, backend), _tokenizers.get(tokenizer)
    if known is None or known[0] != seen:
        if backend is None:
            content: Any = [sorted(tokenizer.get_vocab().items()), type(tokenizer).__name__]
        else:
            content = msgspec.json.decode(backend.to_str())
            # How the last call padded or cut is state, not identity.
            content.update(padding=None, truncation=None)
        known = _tokenizers[tokenizer] = (seen, digest_json(content))
    return known[1]


def _tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase, backend: Any) -> tuple[object, ...]:
    """What changes when its steps or its vocabulary do; to write all of it takes long."""
    size = len(tokenizer)
    if backend is None:
        return (size,)
    steps = [getattr(backend, name) for name in _STEPS]
    inner = backend.model
    options = [getattr(inner, name, None) for name in _OPTIONS]
    some = [backend.id_to_token(at) for at in range(0, size, size // 8 + 1)]
    states = [None if step is None else step.__getstate__() for step in steps]
    return size, type(inner), options, some, states
