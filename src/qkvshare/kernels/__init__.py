"""The hot loops. `reference` is plain torch: any device, the truth for faster ones to match."""
