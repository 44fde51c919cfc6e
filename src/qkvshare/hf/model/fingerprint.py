"""A glance at a model: what changes when its tensors do, found each time that a card is used.

On a processor the values are read by their addresses, by arrays that are made once: to make a view
of each tensor takes longer than all else. Such an array owns nothing, so a model that is moved or
replaced is not kept in memory by it; it is read while the tensors are held, at the addresses that
they have now.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from .departures import scalar_names

_SAMPLE, _WHOLE = 8, 128  # values of a tensor; all of one that has no more than the second
_PLAIN = (Tensor, nn.Parameter)
# What these compute is the same in training mode; a new one is in it.
_INERT = {nn.Linear, nn.Embedding, nn.Identity}

Places = list[tuple[object, ...]]

_windows: WeakKeyDictionary[nn.Module, tuple[Places, list[list[Any]]]] = WeakKeyDictionary()


class Walk(NamedTuple):
    """What one walk through the modules of a model finds.

    Attributes:
        tensors: those of a state dict, found without the names, which take longer than all else.
        passing: the buffers that are not in it.
        plain: whether ``tensors`` are all of them: not with modules that have an attribute
            ``mark``, or make their state in a way of their own.
        training: whether any module is in training mode.
        traits: what else may change what a module computes: its class, plain attributes, hooks,
            and ``forward``.
    """

    tensors: list[Tensor]
    passing: list[Tensor]
    plain: bool
    training: bool
    traits: list[tuple[object, ...]]


def walk(model: nn.Module, mark: str) -> Walk:
    """Look at each module once; ``mark`` is an attribute of modules with a state of their own."""
    modules, tensors, plain, training = [model], list[Tensor](), True, False
    passing, traits = list[Tensor](), list[tuple[object, ...]]()
    usual, values = dict[type, bool](), dict[type, Callable[[dict[str, Any]], object]]()
    for module in modules:  # grows on the way
        # A module searches long for its attributes; these are always in its dictionary.
        own, kind = module.__dict__, type(module)
        if own["_parameters"]:
            tensors += [at for at in own["_parameters"].values() if at is not None]
        if own["_buffers"]:
            unsaved = own["_non_persistent_buffers_set"]
            for name, at in own["_buffers"].items():
                if at is not None:
                    (passing if name in unsaved else tensors).append(at)
        if kind not in usual:
            saved = kind._save_to_state_dict is nn.Module._save_to_state_dict
            usual[kind] = saved and not hasattr(kind, mark)
            names = scalar_names(own)
            values[kind] = itemgetter(*names) if names else len
            traits.append((kind, id(vars(kind).get("forward"))))
        training |= own.get("training", False) and kind not in _INERT
        plain &= usual[kind] and not own["_state_dict_hooks"] and mark not in own
        try:
            trait = values[kind](own)
        except KeyError:  # of a class whose instances have unlike attributes
            trait = [own[name] for name in scalar_names(own)]
        hooks = *own["_forward_hooks"], *own["_forward_pre_hooks"]  # numbers, never used again
        traits.append((kind, trait, hooks, id(own.get("forward"))))
        if own["_modules"]:
            modules += [inner for inner in own["_modules"].values() if inner is not None]
    return Walk(tensors, passing, plain, training, traits)


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
            count, item = size if size <= _WHOLE else _SAMPLE, tensor.element_size()
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
                count = size if size <= _WHOLE else _SAMPLE
                sample = tensor.as_strided((count,), (size // count,))
                samples.setdefault((tensor.device, tensor.dtype), []).append(sample)
        # Together, since a GPU is waited for each time.
        found = [torch.cat(alike).to("cpu", torch.float32) for alike in samples.values()]
        return b"".join(at.numpy().tobytes() for at in found)
