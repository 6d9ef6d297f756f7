"""Changes as products of two factors, which is what LoRA and the compressed formats store."""

from collections.abc import Mapping

from moongate.compression import low_rank
from moongate.concept import Dense, LowRank
from moongate.errors import OptionError

__all__ = ["DEFAULT_RANK", "products"]

DEFAULT_RANK = 32
"""To which dense changes are cut when no rank is asked for."""
ROUNDING = 1e-6
"""A relative error of a product that is the rounding of float32."""


def products(changes: Mapping[str, Dense | LowRank], rank: int | None) -> tuple[dict[str, LowRank], list[str]]:
    """Return matrices' changes as products, and what that lost, for people.

    Without `rank` a change that is a product already is returned as it is, whatever its rank, and a dense one is cut
    to `DEFAULT_RANK`; with it, all are cut to at most that rank. Raises OptionError for a rank below 1.
    """
    if rank is not None and rank < 1:
        raise OptionError(f"The rank is {rank}; it must be at least 1, such as {DEFAULT_RANK}.")
    result, cut, total = {}, 0.0, 0.0
    for name, change in changes.items():
        most = rank or (change.rank if isinstance(change, LowRank) else DEFAULT_RANK)
        result[name], squared = low_rank(change, most)
        cut += squared
        total += float(change.full().double().square().sum())
    if cut <= ROUNDING**2 * total:
        return result, []
    return result, [
        f"The changes were cut to rank {rank or DEFAULT_RANK}, which loses {(cut / total) ** 0.5:.1%} of them "
        "(Frobenius norm). A higher --rank keeps more."
    ]
