"""Where a live model departs from what its class makes of its configuration.

Weights and configuration do not say all that a model computes: frequencies of its positions, scales
and epsilons are numbers in its modules, activations are modules, and anybody may put a hook on a
module or replace its ``forward``. So the same class is made once more of the same configuration,
without memory for weights, and what differs counts to the identity.
"""

from __future__ import annotations

import copy
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ...card.digest import digest_bytes
from .config import innermost
from .packed import fetched
from .rope import CHANGING_TYPES

_SCALARS = (bool, int, float, str, type(None), FunctionType, BuiltinFunctionType)
_NO_MATTER = {
    "compute_type_is_set", "device", "forward", "gradient_checkpointing", "in_gpu", "name_or_path",
    "output_attentions", "output_hidden_states", "padding_idx", "return_dict", "rope_deltas",
    "training", "use_cache",
}  # fmt: skip
# Packages whose hooks and replaced functions leave the numbers as they are.
_TRUSTED = {
    "accelerate", "bitsandbytes", "kernels", "peft", "qkvshare", "torch", "torchao", "transformers",
}  # fmt: skip
# The same frequencies, computed on another device.
_RELATIVE = 1e-5
_NOTHING = object()
_OF_LENGTH = {"attention_scaling", "max_seq_len_cached"}
# Names under which peft and `torch.compile` keep the module that they stand in front of.
_WRAPPED = {"base_layer", "original_module", "_orig_mod"}


class _Expected(NamedTuple):
    """What a module of a fresh model is: class, plain attributes, buffers that are not saved."""

    kind: type
    scalars: dict[str, Any]
    buffers: dict[str, Tensor]


_expected: WeakKeyDictionary[nn.Module, tuple[str, dict[str, _Expected]]] = WeakKeyDictionary()


class _NoNumbers(TorchFunctionMode):
    """Of this thread alone: weights are not drawn, which is most of the time that a model takes."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == nn.init.__name__:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def scalar_names(own: dict[str, Any]) -> list[str]:
    """Which attributes of a module are plain values that may change what it computes."""
    return [
        name
        for name, value in own.items()
        if isinstance(value, _SCALARS) and name[0] != "_" and name not in _NO_MATTER
    ]


def departures(model: nn.Module, says: str) -> list[list[str]]:
    """What differs, each as names and values; ``says`` is the configuration in words."""
    inner = innermost(model)
    known = _expected.get(model)
    if known is None or known[0] != says:
        known = _expected[model] = says, _expect(inner)
    out = list[list[str]]()
    kinds = set[type]()
    for name, module in inner.named_modules():
        kinds.add(type(module))
        out += [[name, "runs", origin] for origin in _added(module)]
        expected = known[1].get(plain_name(name))
        if expected is not None and _WRAPPED.isdisjoint(vars(module)["_modules"]):
            out += [[plain_name(name), *differs] for differs in _compare(module, expected)]
    out += [
        [f"{kind.__module__}.{kind.__qualname__}", "runs", origin]
        for kind in kinds
        if (origin := _replaced(kind)) is not None
    ]
    return sorted(out)


def plain_name(name: str) -> str:
    """The name that a module or weight has without what peft and `torch.compile` wrap around."""
    parts = [part for part in name.split(".") if part not in _WRAPPED]
    return ".".join(parts).removeprefix("base_model.model.")


def _expect(model: nn.Module) -> dict[str, _Expected]:
    """By name, what a fresh model has; nothing for a class that cannot be made so."""
    try:
        with torch.device("meta"), _NoNumbers():
            fresh: Any = type(model)(copy.deepcopy(model.config))
        out = dict[str, _Expected]()
        for name, module in fresh.named_modules():
            own = vars(module)
            passing = [
                buffer
                for buffer in own["_non_persistent_buffers_set"]
                if own["_buffers"].get(buffer) is not None
            ]
            for buffer in passing:  # as transformers fills them after loading
                own["_buffers"][buffer] = _unknown_like(own["_buffers"][buffer])
            if passing:
                fresh._init_weights(module)
            out[name] = _Expected(
                type(module),
                {key: own[key] for key in scalar_names(own)},
                {key: own["_buffers"][key] for key in passing},
            )
        return out
    except Exception:  # code of somebody else, which may do anything
        return {}


def _unknown_like(meta: Tensor) -> Tensor:
    """On the processor, and not a number until somebody says which."""
    real = torch.zeros(meta.shape, dtype=meta.dtype, device="cpu")
    return real.fill_(float("nan")) if real.is_floating_point() else real


def _compare(module: nn.Module, expected: _Expected) -> list[list[str]]:
    own = vars(module)
    if type(module) is not expected.kind:
        said = {name: _in_words(own[name]) for name in sorted(scalar_names(own))}
        return [["is", f"{type(module).__module__}.{type(module).__qualname__}", str(said)]]
    out = [
        [name, _in_words(own[name])]
        for name, value in expected.scalars.items()
        # A tensor where nothing was is kept from one call to the next.
        if isinstance(own.get(name, _NOTHING), _SCALARS)
        and not (_changes_itself(own) and name in _OF_LENGTH)
        and _in_words(own[name]) != _in_words(value)
    ]
    for name, value in expected.buffers.items():
        if own["_buffers"].get(name) is None or _changes_itself(own):
            continue
        found = fetched(module, name)
        if not _same(found, value):
            data = found.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
            out.append([name, str(found.dtype), digest_bytes(data)])
    return out


def _changes_itself(own: dict[str, Any]) -> bool:
    """Whether a module computes its frequencies anew for the length of each text."""
    kinds = own.get("rope_type")
    return not CHANGING_TYPES.isdisjoint(kinds.values() if isinstance(kinds, dict) else [kinds])


def _same(found: Tensor, value: Tensor) -> bool:
    if not value.is_floating_point() or value.isnan().any():
        return True  # nobody has said what it ought to be
    if found.shape != value.shape:
        return False
    if value.numel() == 1:  # a constant in the model's number format
        value = value.to(found.dtype)
    return torch.allclose(found.detach().cpu().float(), value.float(), rtol=_RELATIVE, atol=0)


def _in_words(value: Any) -> str:
    if isinstance(value, (FunctionType, BuiltinFunctionType)):
        return f"{value.__module__}.{value.__qualname__}"
    return repr(value)


def _added(module: nn.Module) -> list[str]:
    """Functions that somebody has put on the module itself."""
    own = vars(module)
    added = [*own["_forward_hooks"].values(), *own["_forward_pre_hooks"].values()]
    if "forward" in own:
        added.append(own["forward"])
    found = [_origin(function) for function in added]
    return [f"{where}.{name}" for where, name in found if where.split(".")[0] not in _TRUSTED]


def _replaced(kind: type) -> str | None:
    """The ``forward`` of a class, where somebody else has put it there."""
    for base in kind.__mro__:
        if "forward" in vars(base):
            where, name = _origin(vars(base)["forward"])
            own = where == base.__module__ or where.split(".")[0] in _TRUSTED
            return None if own else f"{where}.{name}"
    return None


def _origin(function: Any) -> tuple[str, str]:
    """Module and name of what is really called, whatever it says of itself."""
    while isinstance(function, (partial, MethodType)):
        function = function.func if isinstance(function, partial) else function.__func__
    where = getattr(function, "__globals__", {}).get("__name__") or type(function).__module__
    code = getattr(function, "__code__", None)
    return where, code.co_name if code is not None else type(function).__qualname__
