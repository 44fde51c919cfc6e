"""Where cards live."""
