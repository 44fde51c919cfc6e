"""Names for prefixes of token ids, so that the longest one that is stored is found by few look-ups.

Ids are hashed in a chain of blocks, as vLLM names its blocks; a prefix is named by the chain up to
its last whole block and what is left. Whoever has a prompt computes one digest a block, asks which
of them any stored prefix continues, and only there tries the lengths that occur.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from blake3 import blake3

from ..card import Identity
from ..card.digest import TokenIds, digest_json

BLOCK = 32  # tokens


@dataclass(frozen=True)
class Prefixes:
    """The prefixes of one sequence of ids, for one model.

    ``blocks[k]`` (32 bytes) stands for the first ``BLOCK · k`` tokens.
    """

    ids: bytes
    blocks: list[bytes]

    @classmethod
    def of(
        cls, ids: Sequence[int] | TokenIds, identity: Identity, salt: str | None = None
    ) -> Prefixes:
        """Hash ``ids``, ``[tokens]``; another model's and another tenant's have other names."""
        data = np.asarray(ids, dtype="<i4").tobytes()
        seed = digest_json(identity, salt)
        blocks, step = [bytes.fromhex(seed)], 4 * BLOCK
        for start in range(0, len(data) - step + 1, step):
            blocks.append(blake3(blocks[-1] + data[start : start + step]).digest())
        return cls(data, blocks)

    @property
    def tokens(self) -> int:
        """Length of the whole sequence."""
        return len(self.ids) // 4

    def block(self, length: int) -> bytes:
        """The last whole block within the first ``length`` tokens."""
        return self.blocks[length // BLOCK]

    def name(self, length: int) -> bytes:
        """The name (32 bytes) of the first ``length`` tokens."""
        rest = self.ids[4 * (length // BLOCK * BLOCK) : 4 * length]
        return blake3(self.block(length) + rest + b"end").digest()
