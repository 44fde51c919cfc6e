"""Everything QKVShare raises on purpose, in one tree.

Each message says what was found, what was expected and what to do about it.
"""

from __future__ import annotations


class QKVShareError(Exception):
    """Root of all errors that this package raises on purpose."""


class CardError(QKVShareError):
    """The bytes at hand are not a card that can be trusted."""


class CardNotFoundError(CardError):
    """There is no readable file at the given path."""


class CardFormatError(CardError):
    """The file does not follow docs/cachecard.md: cut short, wrong magic, bad header or tensor."""


class CardVersionError(CardError):
    """The card follows another version of the format, or of a codec, than this package reads."""


class CardDigestError(CardError):
    """Some bytes of the card are not those its digests were taken of."""


class CardExpiredError(CardError):
    """The card's ``expires`` time has passed."""


class CardSealedError(CardError):
    """The card is sealed, or ought to be, and cannot be opened; see the two kinds of it."""


class CardKeyError(CardSealedError):
    """Card and key do not go together: no key, another key, or a key for a card not sealed."""


class CardTagError(CardSealedError):
    """Some bytes of a sealed card are not those, or not in the place, that they were sealed in."""


class CardSignatureError(CardError):
    """The card is not signed by somebody the receiver trusts, or is not what was signed."""


class CardThinError(CardError):
    """The card names segments whose bytes it does not hold, and nobody else has them here."""


class CardFetchError(CardError):
    """The card could not be had from where another agent says it is."""


class OutputError(QKVShareError):
    """A file could not be written; what was under its name before is as it was."""


class CardWriteError(OutputError):
    """The card could not be written; what was under its name before is as it was."""


class StoreError(QKVShareError):
    """The store cannot be opened, or does not allow what was asked of it."""


class StoreFullError(StoreError):
    """The store's limit leaves no room for the card."""


class SecretError(QKVShareError):
    """A key, or a list of trusted ones, cannot be used: unreadable, malformed, open to others."""


class IdentityError(QKVShareError):
    """Card and model (or tokenizer) differ, or one of them does not say what it is."""


class UnsupportedModelError(QKVShareError):
    """The model has a layer kind or position encoding that a card cannot carry."""


class CaptureError(QKVShareError):
    """The state offered for capture is empty, malformed, non-finite or not of the given tokens."""


class PromptError(QKVShareError):
    """The prompt cannot go on from the card: other prefix, outside the vocabulary, too long."""


class ContextLengthExceededError(PromptError):
    """The prompt leaves no room in the model's context for an answer."""


class CodecError(QKVShareError):
    """Unknown codec, impossible parameters, or values that the codec cannot represent."""


class BudgetError(CodecError):
    """No setting of the codec meets the budget; the message states the minimum."""


class ProfileError(QKVShareError):
    """The profile is missing, damaged, or was calibrated with another model."""


class ModelNotFoundError(QKVShareError):
    """The model or tokenizer named on the command line cannot be loaded."""


class ServeError(QKVShareError):
    """The server cannot be started so: where it listens, its tokens."""


class UnsupportedParameterError(QKVShareError):
    """A request asks, by the field ``parameter``, for what the server does not do."""

    def __init__(self, message: str, parameter: str) -> None:
        super().__init__(message)
        self.parameter = parameter


class BusyError(QKVShareError):
    """Too many requests of one tenant wait for the model."""


class OverdueError(QKVShareError):
    """A request took longer than one may."""


class AgentError(QKVShareError):
    """Another agent did not do what was asked: its task failed, was refused or called off."""


class CancelledError(QKVShareError):
    """The caller called it off before it was done; the model was not touched."""
