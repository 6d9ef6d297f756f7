"""Where regularization pictures come from."""

__all__: list[str] = []
