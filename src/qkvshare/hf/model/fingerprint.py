"""What changes when a model does, cheap enough to be looked at each time that a card is used."""

from __future__ import annotations

from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...kernels.native import Span, native
from .config import innermost
from .departures import scalar_names
from .packed import PLAIN, keeps_aside, kept_aside, parts

TUNER = "adapter_layer_names"  # what only peft's layers have

_SAMPLE, _WHOLE = 8, 128  # values of a tensor; all of one that has no more than the second
# What these compute is the same in training mode; a new one is in it.
_INERT = {nn.Linear, nn.Embedding, nn.Identity}


class Survey(NamedTuple):
    """What the modules of a model say.

    Attributes:
        tensors: the weights and saved buffers, found without their names, which take longer than
            all else, and what modules of quantizers keep beside them.
        unsaved: the other buffers.
        adapted: whether any module is one of peft's layers.
        unfit: why the model has no identity that lasts, or no cache of numbers, and what to do;
            None where it has.
        training: whether any module is in training mode.
        traits: what else may change what a module computes: its class, plain attributes, hooks,
            and ``forward``.
    """

    tensors: list[Tensor]
    unsaved: list[Tensor]
    adapted: bool
    unfit: str | None
    training: bool
    traits: list[tuple[object, ...]]


def survey(model: nn.Module) -> Survey:
    """Look at each module once."""
    modules, tensors, unsaved = list[Any]([model]), list[Any](), list[Any]()
    inner = innermost(model)
    adapted, unfit, training = False, _unfit(vars(inner)), False
    traits = list[tuple[object, ...]]()
    kinds = dict[type, tuple[bool, Any]]()
    for module in modules:  # grows on the way
        if module is None:
            continue
        # A module searches long for its attributes; these are always in its dictionary.
        own, kind = module.__dict__, type(module)
        tensors += own["_parameters"].values()
        for name, at in own["_buffers"].items():
            (unsaved if name in own["_non_persistent_buffers_set"] else tensors).append(at)
        if kind not in kinds:
            names = scalar_names(own)
            kinds[kind] = keeps_aside(kind, inner), itemgetter(*names) if names else len
            adapted |= hasattr(kind, TUNER)
            traits.append((kind, id(vars(kind).get("forward"))))
        aside, scalars = kinds[kind]
        if aside:
            tensors += [at for _, at in kept_aside(own)]
            unfit = unfit or _unfit(own)
        adapted |= TUNER in own
        training |= own.get("training", False) and kind not in _INERT
        try:
            values = scalars(own)
        except KeyError:  # of a class whose instances have unlike attributes
            values = [own[name] for name in scalar_names(own)]
        hooks = *own["_forward_hooks"], *own["_forward_pre_hooks"]  # numbers, never used again
        traits.append((kind, values, hooks, id(own.get("forward"))))
        modules += own["_modules"].values()
    tensors, unsaved = ([at for at in some if at is not None] for some in (tensors, unsaved))
    return Survey(tensors, unsaved, adapted, unfit, training, traits)


def _unfit(own: dict[str, Any]) -> str | None:
    """Why a model or module cannot be carried, and what to do; ``own`` is its dictionary."""
    if (own.get("_tp_size") or 1) > 1:
        return "its weights are spread over several devices. Load it without tensor parallelism."
    if "ct_decompress_hook" in own:
        return (
            "compressed-tensors unpacks its weights when it first reads. Let it read a token "
            "first, or load it with CompressedTensorsConfig(dequantize=True)."
        )
    weight = own["_parameters"].get("weight")
    if own.get("support_avx512bf16_for_cpu") and weight is not None and weight.is_cpu:
        return (
            "bitsandbytes packs 4-bit weights anew when it first reads on this processor, and "
            "rounds their scales. Load it in 8 bits, or with another quantization."
        )
    if own.get("activation_qtype") is not None:
        return "quanto quantizes what its cache is made of too. Quantize the weights alone."
    if own.get("weight_qtype") is not None and type(weight) in PLAIN:
        return "quanto has not frozen its weights. Call optimum.quanto.freeze(model) first."
    return None


def fingerprint(tensors: list[Tensor]) -> tuple[object, ...]:
    """Addresses, version counters and formats of ``tensors``, and a sample of their values."""
    places, near = list[object](), list[Span]()
    far = dict[tuple[torch.device, torch.dtype], list[Tensor]]()
    with torch.no_grad():
        for at in (part for tensor in tensors for part in parts(tensor)):
            version = -1 if at.is_inference() else at._version
            kind, address = (at.device, at.dtype), at.data_ptr()
            places.append((address, version, type(at), kind, at.shape))
            if not at.is_contiguous() or at.is_meta:
                continue
            if native is not None and at.is_cpu and type(at) in PLAIN:
                near.append((address, at.nbytes))
            elif size := at.numel():
                count = size if size <= _WHOLE else _SAMPLE
                far.setdefault(kind, []).append(at.as_strided((count,), (size // count,)))
        # Together, since a GPU is waited for each time.
        found = [torch.cat(alike).cpu() for alike in far.values()]
    samples = [alike.view(torch.uint8).numpy().tobytes() for alike in found]
    return places, samples, native.sample(near) if near else b""
