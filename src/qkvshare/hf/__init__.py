"""The boundary to ``transformers``; nothing outside this folder imports it."""

# Models can be told to use "qkvshare" from here on.
from . import attention as attention
