"""Where regularization pictures come from."""
