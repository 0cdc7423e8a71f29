"""The localizer: which units prefer one condition, and what the model is without them."""
