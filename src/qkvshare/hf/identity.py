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
from .layers import text_config
from .rope import rope_parameters

# Differ between two loads of the same model, and do not change what a cache means.
_VOLATILE = {
    "architectures", "bos_token_id", "dtype", "eos_token_id", "output_attentions",
    "output_hidden_states", "pad_token_id", "return_dict", "torch_dtype", "transformers_version",
    "use_cache",
}  # fmt: skip

_weights: WeakKeyDictionary[nn.Module, tuple[object, str, Adapter | None]] = WeakKeyDictionary()
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
    weights, adapter = _weight_digests(model)
    return Identity(
        weights=weights,
        config=digest_json(_stable(text_config(model).to_diff_dict())),
        adapter=adapter,
        rope=msgspec.json.encode(rope_parameters(model), order="sorted").decode(),
        dtype=dtype,
        tokenizer=None if tokenizer is None else tokenizer_digest(tokenizer),
        chat_template=None if tokenizer is None else _template_digest(tokenizer),
    )


def _weight_digests(model: PreTrainedModel) -> tuple[str, Adapter | None]:
    adapters, scale = _active_adapters(model)
    tensors = dict(sorted(model.state_dict(keep_vars=True).items()))
    stamp = (_stamp(tensors), sorted(adapters), scale)
    known = _weights.get(model)
    if known is None or known[0] != stamp:
        base, extra = {}, {}
        for name, tensor in tensors.items():
            if name in adapters:
                extra[name] = _tensor_digest(name, tensor)
            elif not _is_adapter_tensor(name, model):
                base[_plain_name(name)] = _tensor_digest(name, tensor)
        adapter = Adapter(digest_json([extra, sorted(scale)]), _common(scale)) if extra else None
        known = _weights[model] = (stamp, digest_json(base), adapter)
    return known[1], known[2]


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
    name = "adapter_layer_names"
    return hasattr(type(module), name) or name in vars(module)


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


def _stamp(tensors: dict[str, Tensor]) -> tuple[object, ...]:
    places, samples = [], dict[tuple[torch.device, torch.dtype], list[Tensor]]()
    with torch.no_grad():
        for name, tensor in tensors.items():
            version = -1 if tensor.is_inference() else tensor._version
            places.append((name, tensor.data_ptr(), version, tensor.dtype, tensor.shape))
            if (size := tensor.numel()) and tensor.is_contiguous():
                count = min(8, size)
                sample = tensor.as_strided((count,), (size // count,))
                samples.setdefault((tensor.device, tensor.dtype), []).append(sample)
        # Together, since a GPU is waited for each time.
        found = [torch.cat(alike).to("cpu", torch.float32) for alike in samples.values()]
        return tuple(places), digest_bytes(torch.cat(found).numpy())


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
