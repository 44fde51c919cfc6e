"""Compose: parts of cards behind another prompt, in another order."""
