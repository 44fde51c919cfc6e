"""A profile: what `qkvshare calibrate` learned about one model, in one safetensors file.

Profiles at hand lie in one folder, named by their digest: ``$QKVSHARE_PROFILES``, by default
``~/.local/share/qkvshare/profiles``. A card that needs one names it by digest.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from blake3 import blake3
from safetensors.numpy import save_file

from .card.container import FileTensors
from .card.digest import is_digest
from .card.errors import CardError, ProfileError
from .card.files import replace

_FORMAT = "qkvshare-profile-1"


@dataclass(frozen=True, eq=False)
class Profile:
    """Arrays by name, and the digest of the weights that they were learned with."""

    weights: str
    arrays: Mapping[str, npt.NDArray[Any]]

    @cached_property
    def digest(self) -> str:
        """BLAKE3 of weights' digest, names, types, shapes and numbers."""
        of = blake3(self.weights.encode())
        for name, array in sorted(self.arrays.items()):
            of.update(f"\0{name}\0{array.dtype.str}\0{array.shape}\0".encode())
            of.update(array.tobytes())
        return of.hexdigest()

    @property
    def has_basis(self) -> bool:
        """Whether the codec `transform` can use it; profiles of before it cannot."""
        return "transform.refined.freq" in self.arrays

    def keep(self) -> str:
        """Make it known to this process, for cards that name it; returns the digest."""
        _known[self.digest] = self
        return self.digest

    def require(self, weights: str) -> None:
        """Raise `ProfileError` unless the profile is of the model with these ``weights``."""
        if weights != self.weights:
            raise ProfileError(
                f"the profile was calibrated with weights {self.weights[:12]}…, the model has "
                f"{weights[:12]}…. Run qkvshare calibrate with this model."
            )

    def save(self, path: Path) -> None:
        """Raises `ProfileError`; ``path`` is replaced as a whole or not at all."""
        metadata = {"format": _FORMAT, "weights": self.weights}
        # safetensors writes the memory as it lies, whatever its strides say.
        arrays = {name: np.ascontiguousarray(array) for name, array in self.arrays.items()}
        replace(path, lambda part: save_file(arrays, part, metadata=metadata), error=ProfileError)

    @classmethod
    def load(cls, path: Path) -> Profile:
        """Raises `ProfileError`."""
        try:
            file = FileTensors(path)
            if file.metadata.get("format") != _FORMAT or not is_digest(_weights_in(file)):
                raise ProfileError(
                    f"{path} has format {file.metadata.get('format')!r}, expected {_FORMAT!r} and "
                    "the digest of a model's weights. Make profiles with qkvshare calibrate."
                )
            arrays = {name: file[name] for name in file}
        except CardError as error:
            raise ProfileError(f"{path} cannot be read as a profile: {error}") from error
        return cls(_weights_in(file), arrays)

    @classmethod
    def find(cls, digest: str) -> Profile:
        """The profile that a card names: known to the process, or in the folder.

        Raises `ProfileError`.
        """
        if digest not in _known:
            path = profiles() / f"{digest}.safetensors"
            if not path.exists():
                raise ProfileError(
                    f"the card was encoded with the profile {digest[:12]}…, which is not at hand "
                    f"in {profiles()}. Copy it there from the sender under the name "
                    f"{path.name}, or load it first (--profile)."
                )
            found = cls.load(path)
            if found.digest != digest:
                raise ProfileError(
                    f"{path} has digest {found.digest[:12]}…, expected the one in its name. The "
                    "file is damaged; copy it again."
                )
            _known[digest] = found
        return _known[digest]

    @classmethod
    def at_hand(cls, weights: str) -> Profile | None:
        """The newest one for `transform` in the folder, learned with ``weights``, if any."""
        files = sorted(profiles().glob("*.safetensors"), key=lambda path: -path.stat().st_mtime)
        for path in files:
            if _weights(path) == weights and (found := cls.find(path.stem)).has_basis:
                return found
        return None

    @classmethod
    def usable(cls, weights: str) -> list[str]:
        """Digests of all that `find` finds, learned with ``weights``."""
        known = [digest for digest, each in _known.items() if each.weights == weights]
        files = [path for path in profiles().glob("*.safetensors") if is_digest(path.stem)]
        return sorted({*known, *(path.stem for path in files if _weights(path) == weights)})


_known: dict[str, Profile] = {}


def profiles() -> Path:
    """The folder of the profiles at hand."""
    named = os.environ.get("QKVSHARE_PROFILES")
    return Path(named) if named else Path.home() / ".local" / "share" / "qkvshare" / "profiles"


def _weights(path: Path) -> str | None:
    try:
        return _weights_in(FileTensors(path))
    except CardError:
        return None


def _weights_in(file: FileTensors) -> str:
    return file.metadata.get("weights", "")
