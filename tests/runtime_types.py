"""Check annotations when functions are called: `make test-shapes`.

jaxtyping checks functions that it generates, which `typeguard.typechecked` cannot instrument since version 4.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

from typeguard import check_type


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function with its arguments and its result checked against the annotations."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        for name, value in bound.arguments.items():
            parameter = signature.parameters[name]
            parts = [value]
            if parameter.kind is parameter.VAR_POSITIONAL:
                parts = [*value]
            elif parameter.kind is parameter.VAR_KEYWORD:
                parts = [*value.values()]
            for part in parts:
                _check(part, parameter.annotation)
        result = function(*args, **kwargs)
        _check(result, signature.return_annotation)
        return result

    return wrapper


def _check(value: Any, annotation: Any) -> None:
    if annotation is not inspect.Signature.empty and "Self" not in str(annotation):  # what Self is, mypy checks
        check_type(value, annotation)
