import ast
from itertools import pairwise
from pathlib import Path

from moongate import limits


def test_every_limit_is_a_positive_number_with_its_reason() -> None:
    nodes = ast.parse(Path(limits.__file__).read_text()).body
    reasons = {
        node.targets[0].id: following.value.value
        for node, following in pairwise(nodes)
        if isinstance(node, ast.Assign) and isinstance(following, ast.Expr)
    }
    assert set(limits.__all__) == set(reasons) - {"__all__"}
    assert all(len(reasons[name]) > 40 for name in limits.__all__)
    assert all(getattr(limits, name) > 0 for name in limits.__all__)
