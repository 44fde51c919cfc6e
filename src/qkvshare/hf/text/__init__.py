"""Text and chat messages as token ids, and token ids as text."""
