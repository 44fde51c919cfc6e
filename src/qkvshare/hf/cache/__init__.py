"""Cache layers that a card is decoded into, and the cache that `inject` hands out."""
