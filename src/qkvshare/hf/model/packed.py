"""Weights that are not plain tensors: quantized ones, what lies beside them, and offloaded ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from enum import Enum
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from ...card.errors import UnsupportedModelError

PLAIN = {Tensor, nn.Parameter, nn.Buffer}  # their memory is their values

_USUAL = {"torch", "peft"}  # packages whose modules keep their weights where all can see them
_DEPTH = 4  # of objects in each other beside a quantized weight


def keeps_aside(kind: type, model: nn.Module) -> bool:
    """Whether modules of this class may keep weights outside of their parameters and buffers.

    Those of torch, peft and the model's own package do not. Quantizers bring modules of their own,
    those of transformers lie in ``transformers.integrations``.
    """
    where = kind.__module__
    if where.startswith("transformers."):
        return where.startswith("transformers.integrations.")
    return where.split(".")[0] not in {*_USUAL, type(model).__module__.split(".")[0]}


def kept_aside(own: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Tensors in a module's dictionary ``own`` that are neither parameters nor buffers, by path."""
    for kind in "_parameters", "_buffers":
        for name, tensor in own[kind].items():
            if tensor is not None and type(tensor) not in PLAIN and not is_composed(tensor):
                yield from _inside(name, vars(tensor), _DEPTH)
    for name, value in own.items():
        if name[0] != "_":
            yield from _inside(name, value, _DEPTH)


def _inside(path: str, value: Any, depth: int) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, (nn.Module, type, FunctionType, ModuleType)) or not depth:
        return
    elif isinstance(value, (dict, list, tuple)):
        for name, at in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _inside(f"{path}.{name}", at, depth - 1)
    elif hasattr(value, "__dict__"):
        for name, at in vars(value).items():
            yield from _inside(f"{path}.{name}", at, depth - 1)


def is_composed(tensor: Tensor) -> bool:
    """Whether a tensor is made of others, as those of torchao and quanto are."""
    return hasattr(tensor, "__tensor_flatten__")


def made_of(tensor: Tensor) -> dict[str, Tensor]:
    """The tensors that a composed one is made of, by name; they may be composed themselves.

    Raises ValueError where others lie on other devices.
    """
    if hasattr(tensor, "device_mesh"):
        raise ValueError(f"a {type(tensor).__name__} is spread over several devices")
    names, _ = tensor.__tensor_flatten__()  # type: ignore[attr-defined]
    return {name: getattr(tensor, name) for name in names}


def says_besides(tensor: Tensor) -> str:
    """All else that a composed tensor says of itself.

    Raises ValueError where a part of that has no words that are the same in each process.
    """
    _, besides = tensor.__tensor_flatten__()  # type: ignore[attr-defined]
    return f"{type(tensor).__module__}.{type(tensor).__qualname__} {_in_words(besides)}"


def parts(tensor: Tensor) -> list[Tensor]:
    """The tensors with memory of their own that ``tensor`` is made of."""
    if type(tensor) in PLAIN or not is_composed(tensor):
        return [tensor]
    return [part for at in made_of(tensor).values() for part in parts(at)]


def _in_words(value: Any) -> str:
    if isinstance(value, dict):
        return str({str(name): _in_words(at) for name, at in value.items()})
    if isinstance(value, (list, tuple)):
        return str([_in_words(at) for at in value])
    if isinstance(value, (FunctionType, type)):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, Enum):
        return f"{type(value).__qualname__}.{value.name}"
    words = repr(value)
    if " at 0x" in words:
        raise ValueError(f"nothing says what a {type(value).__name__} beside a weight is")
    return words


def fetched(module: nn.Module, name: str) -> Tensor:
    """A weight or buffer of ``module`` itself, also where accelerate has offloaded it.

    Raises `UnsupportedModelError` for one on the meta device that nobody has.
    """
    tensor: Tensor = getattr(module, name)
    if not tensor.is_meta:
        return tensor
    from accelerate.utils import align_module_device  # who made a model so has it

    # A ValueError says that accelerate has not offloaded it.
    with suppress(ValueError), align_module_device(module, torch.device("cpu")):
        tensor = getattr(module, name)
    if tensor.is_meta:
        raise UnsupportedModelError(
            f"{name} of a {type(module).__name__} has no bytes to take a digest of: it is on the "
            "meta device, and nobody has its numbers. Load the model fully."
        )
    return tensor
