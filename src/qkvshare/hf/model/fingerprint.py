"""What changes when a model does, cheap enough to be looked at each time that a card is used."""

from __future__ import annotations

from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...kernels.native import Span, native
from .departures import scalar_names

_SAMPLE, _WHOLE = 8, 128  # values of a tensor; all of one that has no more than the second
# What these compute is the same in training mode; a new one is in it.
_INERT = {nn.Linear, nn.Embedding, nn.Identity}
_PLAIN = {Tensor, nn.Parameter, nn.Buffer}  # their memory is their values


class Survey(NamedTuple):
    """What the modules of a model say.

    Attributes:
        tensors: those of a state dict, found without their names, which take longer than all else.
        unsaved: the buffers that are not in it.
        complete: whether ``tensors`` are all of them: not with modules that have an attribute
            ``mark``, or make their state in a way of their own.
        training: whether any module is in training mode.
        traits: what else may change what a module computes: its class, plain attributes, hooks,
            and ``forward``.
    """

    tensors: list[Tensor]
    unsaved: list[Tensor]
    complete: bool
    training: bool
    traits: list[tuple[object, ...]]


def survey(model: nn.Module, mark: str) -> Survey:
    """Look at each module once; ``mark`` is an attribute of modules with a state of their own."""
    modules, tensors, unsaved = list[Any]([model]), list[Any](), list[Any]()
    complete, training, traits = True, False, list[tuple[object, ...]]()
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
            usual = kind._save_to_state_dict is nn.Module._save_to_state_dict
            names = scalar_names(own)
            kinds[kind] = usual and not hasattr(kind, mark), itemgetter(*names) if names else len
            traits.append((kind, id(vars(kind).get("forward"))))
        usual, scalars = kinds[kind]
        complete &= usual and not own["_state_dict_hooks"] and mark not in own
        training |= own.get("training", False) and kind not in _INERT
        try:
            values = scalars(own)
        except KeyError:  # of a class whose instances have unlike attributes
            values = [own[name] for name in scalar_names(own)]
        hooks = *own["_forward_hooks"], *own["_forward_pre_hooks"]  # numbers, never used again
        traits.append((kind, values, hooks, id(own.get("forward"))))
        modules += own["_modules"].values()
    tensors, unsaved = ([at for at in some if at is not None] for some in (tensors, unsaved))
    return Survey(tensors, unsaved, complete, training, traits)


def fingerprint(tensors: list[Tensor]) -> tuple[object, ...]:
    """Addresses, version counters and formats of ``tensors``, and a sample of their values."""
    places, near = list[object](), list[Span]()
    far = dict[tuple[torch.device, torch.dtype], list[Tensor]]()
    with torch.no_grad():
        for at in tensors:
            version = -1 if at.is_inference() else at._version
            kind, address = (at.device, at.dtype), at.data_ptr()
            places.append((address, version, type(at), kind, at.shape))
            if not at.is_contiguous():
                continue
            if native is not None and at.is_cpu and type(at) in _PLAIN:
                near.append((address, at.nbytes))
            elif size := at.numel():
                count = size if size <= _WHOLE else _SAMPLE
                far.setdefault(kind, []).append(at.as_strided((count,), (size // count,)))
        # Together, since a GPU is waited for each time.
        found = [torch.cat(alike).cpu() for alike in far.values()]
    samples = [alike.view(torch.uint8).numpy().tobytes() for alike in found]
    return places, samples, native.sample(near) if near else b""
