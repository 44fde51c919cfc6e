"""The boundary to ``transformers``; nothing outside this folder imports it."""
