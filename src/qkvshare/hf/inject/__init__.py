"""From a card to ready arguments for ``model.generate``."""
