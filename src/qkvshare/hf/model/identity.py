"""The identity of a live model and tokenizer: digests of content, never of names."""

from __future__ import annotations

from typing import Any, NamedTuple, cast
from weakref import WeakKeyDictionary

import msgspec
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...card import Adapter, Identity
from ...card.digest import digest_bytes, digest_json
from ...card.errors import UnsupportedModelError
from ...codecs import DTYPES
from .config import says, text_config
from .departures import departures, plain_name
from .fingerprint import Survey, fingerprint, survey
from .rope import rope_parameters
from .text_only import require_no_dropout, require_no_prompt_vectors

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

_TUNER = "adapter_layer_names"  # what only peft's layers have

_weights: WeakKeyDictionary[nn.Module, tuple[object, str, Adapter | None]] = WeakKeyDictionary()
_configs: WeakKeyDictionary[nn.Module, tuple[object, str]] = WeakKeyDictionary()
_tokenizers: WeakKeyDictionary[Any, tuple[object, str]] = WeakKeyDictionary()


class _Adapter(NamedTuple):
    """One adapter in force."""

    tensors: dict[str, str]  # names in the state dict, and what they are without the adapter's
    scales: dict[str, float]  # by module


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
    found = survey(model, _TUNER)
    require_no_dropout(found.training)
    try:
        weights, adapter = _weight_digests(model, found)
    except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        raise UnsupportedModelError(
            f"the weights of {type(model).__name__} have no bytes to take a digest of ({error}). "
            "Load the model fully: neither offloaded nor with packed weights."
        ) from error
    template = getattr(tokenizer, "chat_template", None) or ""
    return Identity(
        weights=weights,
        config=_config_digest(model, found),
        adapter=adapter,
        rope=msgspec.json.encode(rope_parameters(model), order="sorted").decode(),
        dtype=dtype,
        tokenizer=None if tokenizer is None else tokenizer_digest(tokenizer),
        chat_template=None if tokenizer is None else digest_json(template),
    )


def _weight_digests(model: PreTrainedModel, found: Survey) -> tuple[str, Adapter | None]:
    adapters, tensors = dict[str, _Adapter](), found.tensors
    if not found.complete:
        adapters = _active_adapters(model)
        tensors = [at for _, at in sorted(model.state_dict(keep_vars=True).items())]
    # What changes when the weights, or the adapters in force, do.
    seen = found.complete, adapters, fingerprint(tensors + found.unsaved)
    known = _weights.get(model)
    if known is None or known[0] != seen:
        active = set[str]().union(*(adapter.tensors for adapter in adapters.values()))
        base, extra = {}, {}
        for name, tensor in sorted(model.state_dict(keep_vars=True).items()):
            if name in active:
                extra[name] = _tensor_digest(name, tensor)
            elif not _is_adapter_tensor(name, model):
                base[plain_name(name)] = _tensor_digest(name, tensor)
        known = _weights[model] = (seen, digest_json(base), _together([*adapters.values()], extra))
    return known[1], known[2]


def _together(adapters: list[_Adapter], digests: dict[str, list[object]]) -> Adapter | None:
    """One digest of all adapters in force, whatever they are called."""
    if not adapters:
        return None
    each = [
        digest_json([{plain: digests[at] for at, plain in one.tensors.items()}, one.scales])
        for one in adapters
    ]
    scales = [scale for one in adapters for scale in one.scales.values()]
    return Adapter(digest_json(sorted(each)), max(scales, default=1.0))


def _config_digest(model: PreTrainedModel, found: Survey) -> str:
    """Of what the configuration says, and of what the model computes besides."""
    config = text_config(model)
    # To find what differs from the defaults takes long; what a configuration says does not.
    said = says(config)
    seen, known = (said, found.traits, _weights[model][0]), _configs.get(model)
    if known is None or known[0] != seen:
        differs, besides = _stable(config.to_diff_dict()), departures(model, said)
        known = _configs[model] = seen, digest_json([differs, besides] if besides else differs)
    return known[1]


def _active_adapters(model: nn.Module) -> dict[str, _Adapter]:
    """The adapters in force (peft's tuner layers), by the names that they have here."""
    out = dict[str, _Adapter]()
    for prefix, module in model.named_modules():
        if not _is_tuner(module) or getattr(module, "disable_adapters", False):
            continue
        for part in module.active_adapters:
            adapter = out.setdefault(part, _Adapter({}, {}))
            if part in (scaling := getattr(module, "scaling", {})):
                adapter.scales[plain_name(prefix)] = float(scaling[part])
            for kind in module.adapter_layer_names:
                if part not in (children := getattr(module, kind)):
                    continue
                path, plain = f"{prefix}.{kind}.{part}", f"{plain_name(prefix)}.{kind}"
                if isinstance(children[part], Tensor):
                    adapter.tensors[path] = plain
                else:
                    names = children[part].state_dict()
                    adapter.tensors.update({f"{path}.{at}": f"{plain}.{at}" for at in names})
    return {name: adapter for name, adapter in out.items() if adapter.tensors}


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


def _tensor_digest(name: str, tensor: Tensor) -> list[object]:
    if not isinstance(tensor, Tensor) or tensor.device.type == "meta":
        where = tensor.device if isinstance(tensor, Tensor) else "packed"
        raise ValueError(f"{name} is {type(tensor).__name__}, {where}")
    data = tensor.detach().contiguous().cpu().flatten().view(torch.uint8).numpy()
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
