"""A glance at a model: what changes when its tensors do, found each time that a card is used.

On a processor the values are read by their addresses, by arrays that are made once: to make a view
of each tensor takes longer than all else. Such an array owns nothing, so a model that is moved or
replaced is not kept in memory by it; it is read while the tensors are held, at the addresses that
they have now.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

_SAMPLE = 8  # values of a tensor
_PLAIN = (Tensor, nn.Parameter)
# What these compute is the same in training mode; a new one is in it.
_INERT = {nn.Linear, nn.Embedding, nn.Identity}

Places = list[tuple[object, ...]]

_windows: WeakKeyDictionary[nn.Module, tuple[Places, list[list[Any]]]] = WeakKeyDictionary()


def state_tensors(model: nn.Module, mark: str) -> tuple[list[Tensor], bool, bool]:
    """Those of a state dict, found without the names, which take longer than all else; whether
    that is so: not with modules that have an attribute ``mark``, or make their state in a way of
    their own; and whether any module is in training mode."""
    modules, tensors, plain, training = [model], list[Tensor](), True, False
    usual = dict[type, bool]()
    for module in modules:  # grows on the way
        # A module searches long for its attributes; these are always in its dictionary.
        own, kind = module.__dict__, type(module)
        if own["_parameters"]:
            tensors += [at for at in own["_parameters"].values() if at is not None]
        if own["_buffers"]:
            passing, buffers = own["_non_persistent_buffers_set"], own["_buffers"].items()
            tensors += [at for name, at in buffers if at is not None and name not in passing]
        if kind not in usual:
            saved = kind._save_to_state_dict is nn.Module._save_to_state_dict
            usual[kind] = saved and not hasattr(kind, mark)
        training |= own["training"] and kind not in _INERT
        plain &= usual[kind] and not own["_state_dict_hooks"] and mark not in own
        if own["_modules"]:
            modules += [inner for inner in own["_modules"].values() if inner is not None]
    return tensors, plain, training


def stamp(model: nn.Module, tensors: list[Tensor]) -> tuple[object, ...]:
    """Of the model's ``tensors``: addresses, version counters, formats, and a sample of values."""
    try:
        versions = [at._version for at in tensors]
    except RuntimeError:  # inference tensors have none
        versions = [-1 if at.is_inference() else at._version for at in tensors]
    # Whatever another thread does meanwhile.
    held = [at.untyped_storage() for at in tensors if type(at) in _PLAIN]
    places: Places = [
        (at.data_ptr(), type(at), at.dtype, at.shape, at.is_contiguous(), at.device)
        for at in tensors
    ]
    found = versions, places, _sample(model, tensors, places)
    del held
    return found


def _sample(model: nn.Module, tensors: list[Tensor], places: Places) -> bytes:
    """The bits of some values of each tensor whose values follow each other."""
    known = _windows.get(model)
    if known is None or known[0] != places:
        _windows.pop(model, None)
        if not all(_plain(at) for at in tensors):
            return _sample_any(tensors)
        known = _windows[model] = places, _look(tensors)
    return b"".join(np.concatenate(alike).tobytes() for alike in known[1])


def _plain(tensor: Tensor) -> bool:
    """Whether it has an address on this processor."""
    return tensor.is_cpu and type(tensor) in _PLAIN and tensor.layout is torch.strided


@dataclass(frozen=True)
class _Window:
    """What NumPy makes an array of that owns nothing."""

    __array_interface__: dict[str, Any]


def _look(tensors: list[Tensor]) -> list[list[Any]]:
    """Arrays of the sampled values, those of one size together."""
    alike = dict[int, list[Any]]()
    for tensor in tensors:
        if (size := tensor.numel()) and tensor.is_contiguous():
            count, item = min(_SAMPLE, size), tensor.element_size()
            window = {
                "data": (tensor.data_ptr(), True),
                "shape": (count,),
                "strides": (size // count * item,),
                "typestr": f"|V{item}",
                "version": 3,
            }
            alike.setdefault(item, []).append(np.asarray(_Window(window)))
    return list(alike.values())


def _sample_any(tensors: list[Tensor]) -> bytes:
    """The same of tensors of all kinds, wherever they are."""
    samples = dict[tuple[torch.device, torch.dtype], list[Tensor]]()
    with torch.no_grad():
        for tensor in tensors:
            if (size := tensor.numel()) and tensor.is_contiguous():
                count = min(_SAMPLE, size)
                sample = tensor.as_strided((count,), (size // count,))
                samples.setdefault((tensor.device, tensor.dtype), []).append(sample)
        # Together, since a GPU is waited for each time.
        found = [torch.cat(alike).to("cpu", torch.float32) for alike in samples.values()]
        return b"".join(at.numpy().tobytes() for at in found)
