"""What time costs: everything is measured within one run, alternating; ratios are what counts."""
