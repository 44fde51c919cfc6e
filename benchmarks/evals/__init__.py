"""What quality costs: every number is taken from real cards, written to disk and read back."""
