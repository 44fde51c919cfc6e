"""The identity of a live model and tokenizer: digests of content, never of names."""

from __future__ import annotations

from typing import Any, cast
from weakref import WeakKeyDictionary

import msgspec
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..card import Adapter, Identity
from ..card.digest import digest_bytes, digest_json
from ..card.errors import UnsupportedModelError
from ..codecs import DTYPES
from .beside import require_no_dropout, require_no_prompt_vectors
from .layers import text_config
from .rope import rope_parameters
from .stamp import stamp, state_tensors

# Differ between two loads of the same model, and do not change what a cache means.
_VOLATILE = {
    "architectures", "bos_token_id", "dtype", "eos_token_id", "output_attentions",
    "output_hidden_states", "pad_token_id", "return_dict", "torch_dtype", "transformers_version",
    "use_cache",
}  # fmt: skip

_TUNER = "adapter_layer_names"  # what only peft's layers have

_weights: WeakKeyDictionary[nn.Module, tuple[object, str, Adapter | None]] = WeakKeyDictionary()
_configs: WeakKeyDictionary[nn.Module, tuple[str, str]] = WeakKeyDictionary()
_tokenizers: WeakKeyDictionary[Any, tuple[int, str]] = WeakKeyDictionary()


def identify(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None) -> Identity:
    """What a cache of ``model`` is bound to.

    The weights are hashed as they are in memory, once a model object, and again when a tensor was
    replaced, changed in place, or changed where a sample of 8 values per tensor shows it. (A write
    through ``.data`` that misses the sample is not seen once the first digest is taken.)

    Raises `UnsupportedModelError`.
    """
    dtype = str(model.dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise UnsupportedModelError(
            f"the model is in {dtype}; a card carries {', '.join(sorted(DTYPES))}."
        )
    require_no_prompt_vectors(model)
    weights, adapter = _weight_digests(model)
    return Identity(
        weights=weights,
        config=_config_digest(model),
        adapter=adapter,
        rope=msgspec.json.encode(rope_parameters(model), order="sorted").decode(),
        dtype=dtype,
        tokenizer=None if tokenizer is None else tokenizer_digest(tokenizer),
        chat_template=None if tokenizer is None else _template_digest(tokenizer),
    )


def _weight_digests(model: PreTrainedModel) -> tuple[str, Adapter | None]:
    seen = _stamp(model)
    known = _weights.get(model)
    if known is None or known[0] != seen:
        adapters, scale = _active_adapters(model)
        base, extra = {}, {}
        for name, tensor in sorted(model.state_dict(keep_vars=True).items()):
            if name in adapters:
                extra[name] = _tensor_digest(name, tensor)
            elif not _is_adapter_tensor(name, model):
                base[_plain_name(name)] = _tensor_digest(name, tensor)
        adapter = Adapter(digest_json([extra, sorted(scale)]), _common(scale)) if extra else None
        known = _weights[model] = (seen, digest_json(base), adapter)
    return known[1], known[2]


def _config_digest(model: PreTrainedModel) -> str:
    config = text_config(model)
    # To find what differs from the defaults takes long; what a configuration says does not.
    says, known = repr(vars(config)), _configs.get(model)
    if known is None or known[0] != says:
        known = _configs[model] = says, digest_json(_stable(config.to_diff_dict()))
    return known[1]


def _active_adapters(model: nn.Module) -> tuple[set[str], list[float]]:
    """Names of the tensors of the adapters in force, and their scales (peft's tuner layers)."""
    names: set[str] = set()
    scales: list[float] = []
    for prefix, module in model.named_modules():
        if not _is_tuner(module) or getattr(module, "disable_adapters", False):
            continue
        active = set(module.active_adapters)
        scales += [float(v) for k, v in getattr(module, "scaling", {}).items() if k in active]
        for kind in module.adapter_layer_names:
            for part in getattr(module, kind):
                if part in active:
                    child = getattr(module, kind)[part]
                    path = f"{prefix}.{kind}.{part}"
                    names |= (
                        {path}
                        if isinstance(child, Tensor)
                        else {f"{path}.{inner}" for inner in child.state_dict()}
                    )
    return names, scales


def _is_tuner(module: nn.Module) -> bool:
    """One of peft's layers. Asked of the class, since a module searches long for what it lacks."""
    return hasattr(type(module), _TUNER) or _TUNER in vars(module)


def _is_adapter_tensor(name: str, model: nn.Module) -> bool:
    """Whether ``name`` is an adapter's, active or not, and not the wrapped layer's."""
    parent, _, _ = name.rpartition(".")
    while parent:
        module = model.get_submodule(parent)
        if _is_tuner(module):
            # What is not known to be an adapter's counts as weights: a mismatch, never a hole.
            return name.removeprefix(parent + ".").split(".")[0] in tuple(
                cast(Any, module).adapter_layer_names
            )
        parent = parent.rpartition(".")[0]
    return False


def _plain_name(name: str) -> str:
    """The name that a weight has without peft around it."""
    plain = name.removeprefix("base_model.model.")
    return plain.replace(".base_layer.", ".").replace(".original_module.", ".")


def _common(scales: list[float]) -> float:
    return max(scales, default=1.0)


def _stamp(model: nn.Module) -> tuple[object, ...]:
    """What changes when the weights, or the adapters in force, do; a sample of what they hold."""
    tensors, plain, training = state_tensors(model, _TUNER)
    require_no_dropout(training)
    if plain:
        return None, stamp(model, tensors)
    tensors = [at for _, at in sorted(model.state_dict(keep_vars=True).items())]
    return [sorted(found) for found in _active_adapters(model)], stamp(model, tensors)


def _tensor_digest(name: str, tensor: Tensor) -> list[object]:
    try:
        data = tensor.detach().contiguous().cpu().flatten().view(torch.uint8).numpy()
    except (RuntimeError, NotImplementedError) as error:
        raise UnsupportedModelError(
            f"the weight {name} ({type(tensor).__name__} on {tensor.device}) has no bytes to take "
            f"a digest of: {error}. Load the model fully, without offloading."
        ) from error
    return [str(tensor.dtype), list(tensor.shape), digest_bytes(data)]


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
    known = _tokenizers.get(tokenizer)
    if known is None or known[0] != len(tokenizer):
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            content: Any = [sorted(tokenizer.get_vocab().items()), type(tokenizer).__name__]
        else:
            content = msgspec.json.decode(backend.to_str())
            # How the last call padded or cut is state, not identity.
            content.update(padding=None, truncation=None)
        known = _tokenizers[tokenizer] = (len(tokenizer), digest_json(content))
    return known[1]


def _template_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    return digest_json(getattr(tokenizer, "chat_template", None) or "")
