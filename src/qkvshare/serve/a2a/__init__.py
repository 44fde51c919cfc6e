"""Agents that hand cards to each other over A2A (a2a-sdk 1.x); see docs/a2a.md."""

from ...card.container import MEDIA_TYPE
from .agent import Agent
from .app import app
from .client import Taken, ask, take
from .extension import URI, Receiver
from .wire import Fetch

__all__ = ["MEDIA_TYPE", "URI", "Agent", "Fetch", "Receiver", "Taken", "app", "ask", "take"]
