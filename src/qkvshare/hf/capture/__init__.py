"""From what a model has read to a card: read, score, allocate, encode."""
