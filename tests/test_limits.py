import ast
from itertools import pairwise
from pathlib import Path

import pytest

from moongate import limits
from moongate.errors import OptionError


def test_every_limit_is_a_positive_number_with_its_reason() -> None:
    nodes = ast.parse(Path(limits.__file__).read_text()).body
    reasons = {
        node.targets[0].id: following.value.value
        for node, following in pairwise(nodes)
        if isinstance(node, ast.Assign) and isinstance(following, ast.Expr)
    }
    names = {name for name in limits.__all__ if name.isupper()}
    assert names == set(reasons) - {"__all__"}
    assert all(len(reasons[name]) > 40 for name in names)
    assert all(getattr(limits, name) > 0 for name in names)


@pytest.mark.parametrize(
    ("count", "message"), [(0, "steps is 0; it must be at least 1."), (11, "is 11; it is at most 10")]
)
def test_a_number_is_refused_beyond_its_bounds(count: int, message: str) -> None:
    limits.check_count("steps", None, at_most=10)
    limits.check_count("steps", 10, at_most=10)
    with pytest.raises(OptionError, match=message):
        limits.check_count("steps", count, at_most=10)
