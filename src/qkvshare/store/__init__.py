"""Where cards live: content-addressed files, an index, eviction, time to live."""

from .adopt import adopt
from .audit import Audit
from .catalog import Entry, Match
from .remote import RemoteEntry, RemoteStore
from .store import Store
from .upload import Upload

__all__ = ["Audit", "Entry", "Match", "RemoteEntry", "RemoteStore", "Store", "Upload", "adopt"]
