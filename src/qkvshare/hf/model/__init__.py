"""A live model: its identity, configuration and RoPE, and what a card cannot carry of it."""
