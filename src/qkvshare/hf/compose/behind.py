"""What the parts of a composition stand behind, and what stood before them in their cards."""

from __future__ import annotations

import msgspec
import numpy as np

from ...card import Identity
from ...card.digest import TokenIds, digest_bytes
from ...card.errors import PromptError
from ..model.identity import identify
from .composition import Composition


class Behind(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What anchors are for.

    Attributes:
        identity: of the model.
        prompt: digest of the token ids before the first part.
        donors: for each part, digest of the token ids that stood before it in its card.
    """

    identity: Identity
    prompt: str
    donors: list[str]

    @classmethod
    def of(cls, composition: Composition) -> Behind:
        """What the parts of a composition stand behind, and stood."""
        layout = composition.layout
        before = [one.span.card.token_ids[: one.span.start] for one in layout.spans]
        prompt = layout.ids[: layout.spans[0].at]
        return cls(identify(composition.model), _digest(prompt), [_digest(ids) for ids in before])

    def require(self, composition: Composition) -> None:
        """Raise `IdentityError` or `PromptError` unless ``composition`` is alike."""
        own = Behind.of(composition)
        self.identity.require(own.identity)
        if own.prompt != self.prompt:
            raise PromptError(
                "the anchors were learnt behind another prompt, and would make the parts worse "
                "than they are. Learn anchors behind this one, or compose without."
            )
        if own.donors != self.donors:
            raise PromptError(
                f"the anchors are for {len(self.donors)} parts, each behind the prompt of its own "
                f"donor; the composition has {len(own.donors)} parts, or their cards begin with "
                "other tokens. Learn anchors for such parts, or compose without."
            )


def _digest(ids: TokenIds) -> str:
    return digest_bytes(np.ascontiguousarray(ids, "<i4").tobytes())
