"""Digests of a live model's weights and of the adapters in force, taken again when they change."""

from __future__ import annotations

from collections.abc import Iterator
from operator import attrgetter
from typing import Any, NamedTuple, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...card import Adapter
from ...card.digest import digest_bytes, digest_json
from ...card.errors import UnsupportedModelError
from .config import innermost
from .departures import plain_name
from .fingerprint import TUNER, Survey, fingerprint
from .packed import fetched, is_composed, keeps_aside, kept_aside, made_of, says_besides


class Weights(NamedTuple):
    """What is known of a model's weights.

    Attributes:
        seen: the fingerprint that belongs to the digests.
        digest: of all weights but those of adapters.
        adapter: those in force; None where there are none.
    """

    seen: object
    digest: str
    adapter: Adapter | None


class _Adapter(NamedTuple):
    """One adapter in force."""

    tensors: dict[str, str]  # names in the state dict, and what they are without the adapter's
    scales: dict[str, float]  # by module
    others: dict[str, Any]  # tensors and numbers that it was not trained for, as VeRA's and indices


_known: WeakKeyDictionary[nn.Module, Weights] = WeakKeyDictionary()


def weights_of(model: PreTrainedModel, found: Survey) -> Weights:
    """Digests of the weights as they are in memory; of offloaded ones as accelerate has them.

    Raises `UnsupportedModelError`.
    """
    if model.device.type == "meta":
        raise UnsupportedModelError(
            f"the first weights of {type(model).__name__} are offloaded, or on the meta device: "
            "nobody can tell on which device it takes its tokens. Load the model with a "
            "device_map that keeps its embedding on a device."
        )
    if found.unfit is not None:
        raise UnsupportedModelError(
            f"a card cannot carry what {type(model).__name__} has read: {found.unfit}"
        )
    try:
        adapters = _active_adapters(innermost(model)) if found.adapted else {}
        # What changes when the weights, or the adapters in force, do.
        in_force = [(name, one.tensors, one.scales) for name, one in adapters.items()]
        seen = in_force, fingerprint(found.tensors + found.unsaved)
        known = _known.get(model)
        if known is None or known.seen != seen:
            known = _known[model] = Weights(seen, *_digests(innermost(model), adapters))
    except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        raise UnsupportedModelError(
            f"the weights of {type(model).__name__} have no bytes to take a digest of ({error}). "
            "Load the model in another number format, or another quantization, and fully."
        ) from error
    return known


def _digests(model: nn.Module, adapters: dict[str, _Adapter]) -> tuple[str, Adapter | None]:
    """Of the weights, and of the adapters in force. What wraps a model has none of its own."""
    modules = dict(model.named_modules(remove_duplicate=False))
    active = set[str]().union(*(adapter.tensors for adapter in adapters.values()))
    base, extra = dict[str, list[object]](), dict[str, list[object]]()
    for name, tensor in sorted(_named(model, modules).items()):
        if name in active:
            extra[name] = _tensor_digest(name, tensor, modules)
        elif not _is_adapter_tensor(name, modules):
            base[plain_name(name)] = _tensor_digest(name, tensor, modules)
    return digest_json(base), _together([*adapters.values()], extra)


def _named(model: nn.Module, modules: dict[str, nn.Module]) -> dict[str, Tensor]:
    """The state dict, with composed weights as wholes, and what modules keep outside of it."""
    wholes, aside = dict[str, Tensor](), dict[str, Tensor]()
    for prefix, module in modules.items():
        own = vars(module)
        for name, tensor in own["_parameters"].items():
            if tensor is not None and is_composed(tensor):
                wholes[f"{prefix}.{name}"] = tensor
        kind = type(module)
        if keeps_aside(kind, model) and not _saves_in_its_own_way(kind):
            aside.update((f"{prefix}.{path}", at) for path, at in kept_aside(own))
    state = {
        name: tensor
        for name, tensor in model.state_dict(keep_vars=True).items()
        if wholes.keys().isdisjoint(_above(name))
    }
    return {**state, **wholes, **aside}


def _saves_in_its_own_way(kind: type[nn.Module]) -> bool:
    """Whether a class of modules says itself what its state is."""
    return (
        kind._save_to_state_dict is not nn.Module._save_to_state_dict
        or kind.state_dict is not nn.Module.state_dict
    )


def _above(name: str) -> Iterator[str]:
    """The names of what ``name`` lies in, the nearest first."""
    while name := name.rpartition(".")[0]:
        yield name


def _together(adapters: list[_Adapter], digests: dict[str, list[object]]) -> Adapter | None:
    """One digest of all adapters in force, whatever they are called."""
    if not adapters:
        return None
    each = list[str]()
    for one in adapters:
        said: list[object] = [{plain: digests[at] for at, plain in one.tensors.items()}, one.scales]
        if one.others:
            said.append({name: _other(name, at) for name, at in one.others.items()})
        each.append(digest_json(said))
    scales = [scale for one in adapters for scale in one.scales.values()]
    return Adapter(digest_json(sorted(each)), max(scales, default=1.0))


def _other(name: str, value: Any) -> object:
    return _tensor_digest(name, value, {}) if isinstance(value, Tensor) else list(value)


def _active_adapters(model: nn.Module) -> dict[str, _Adapter]:
    """The adapters in force (peft's tuner layers), by the names that they have here."""
    out = dict[str, _Adapter]()
    for prefix, module in model.named_modules():
        if not _is_tuner(module) or getattr(module, "disable_adapters", False):
            continue
        for part in module.active_adapters:
            adapter = out.setdefault(part, _Adapter({}, {}, {}))
            if part in (scaling := getattr(module, "scaling", {})):
                adapter.scales[plain_name(prefix)] = float(scaling[part])
            for kind in module.adapter_layer_names:
                if part not in (children := attrgetter(kind)(module)):
                    continue
                path, plain = f"{prefix}.{kind}.{part}", f"{plain_name(prefix)}.{kind}"
                if isinstance(children[part], Tensor):
                    adapter.tensors[path] = plain
                else:
                    names = children[part].state_dict()
                    adapter.tensors.update({f"{path}.{at}": f"{plain}.{at}" for at in names})
            for kind in _other_names(module):
                given = getattr(module, kind, {})
                if not hasattr(given, "keys") or part not in given:
                    continue
                if isinstance(given[part], (Tensor, list, tuple)):
                    adapter.others[f"{plain_name(prefix)}.{kind}"] = given[part]
    return {name: adapter for name, adapter in out.items() if adapter.tensors}


def _is_tuner(module: nn.Module) -> bool:
    """One of peft's layers. Asked of the class, since a module searches long for what it lacks."""
    return hasattr(type(module), TUNER) or TUNER in vars(module)


def _other_names(module: nn.Module) -> tuple[str, ...]:
    """What one of peft's layers keeps of its adapters besides what was trained."""
    return tuple(getattr(module, "other_param_names", ()))


def _is_adapter_tensor(name: str, modules: dict[str, nn.Module]) -> bool:
    """Whether ``name`` is an adapter's, active or not, and not the wrapped layer's."""
    for parent in _above(name):
        module = modules.get(parent)  # none for what lies in a quantized weight
        if module is not None and _is_tuner(module):
            # What is not known to be an adapter's counts as weights: a mismatch, never a hole.
            known = *cast(Any, module).adapter_layer_names, *_other_names(module)
            return name.removeprefix(parent + ".").split(".")[0] in known
    return False


def _tensor_digest(name: str, tensor: Tensor, modules: dict[str, nn.Module]) -> list[object]:
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{name} is a {type(tensor).__name__}, packed")
    if tensor.is_meta:
        parent, _, last = name.rpartition(".")
        if parent not in modules:
            raise ValueError(f"{name} is offloaded and quantized")
        tensor = fetched(modules[parent], last)
    if is_composed(tensor):
        inner = {
            at: _tensor_digest(f"{name}.{at}", part, modules)
            for at, part in made_of(tensor).items()
        }
        return [str(tensor.dtype), list(tensor.shape), says_besides(tensor), inner]
    data = tensor.detach().contiguous().cpu().flatten().view(torch.uint8).numpy()
    return [str(tensor.dtype), list(tensor.shape), digest_bytes(data)]
