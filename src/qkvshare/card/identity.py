"""What a cache is bound to.

A KV cache means something only to the exact weights, adapter, tokenizer, chat template, position
encoding and number format that made it. Names prove nothing, so every field is a digest of content
or a value read from the live model. A field that one side does not know never matches.
"""

from __future__ import annotations

import msgspec

from .errors import IdentityError


class Adapter(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The active adapters (LoRA and the like): digest of their tensors and scales."""

    digest: str
    scale: float


class Identity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who may use a card. ``tokenizer`` and ``chat_template`` are None where nobody said."""

    weights: str
    config: str
    adapter: Adapter | None
    rope: str
    dtype: str
    tokenizer: str | None = None
    chat_template: str | None = None

    def require(self, model: Identity) -> None:
        """Raise `IdentityError` unless ``model`` (the receiver) is what this card is bound to.

        The tokenizer is compared only where the receiver brings one: without it token ids go in
        and out, and the ids themselves are compared. Brought, it must match a known one.
        """
        names = ["weights", "config", "adapter", "rope", "dtype"]
        if model.tokenizer is not None:
            names += ["tokenizer", "chat_template"]
        differences = []
        for name in names:
            mine, theirs = getattr(self, name), getattr(model, name)
            unknown = mine is None and name != "adapter"
            if unknown or mine != theirs:
                label = name.replace("_", " ")
                differences.append(f"{label}: card has {_show(mine)}, receiver has {_show(theirs)}")
        if differences:
            raise IdentityError(
                "the card belongs to another model: " + "; ".join(differences) + ". "
                "A cache is valid only for the exact model that made it: load that model, "
                "or hand over the text and read it again."
            )


def _show(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, Adapter):
        return f"{value.digest[:12]}… at scale {value.scale:g}"
    text = str(value)
    return f"{text[:12]}…" if len(text) == 64 else text
