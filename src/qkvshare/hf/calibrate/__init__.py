"""Learn a model's profile from texts that it reads."""
