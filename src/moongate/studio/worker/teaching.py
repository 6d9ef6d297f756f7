"""Answers for the page Teach."""

from moongate.studio.worker.bench import Bench

__all__ = ["check_token"]


def check_token(bench: Bench, token: str, model: str | None = None) -> bool:
    """Return True if a token can be added to a model as one new word.

    Raises:
        TokenError: It cannot; the message says why, and what can.
    """
    bench.backbone(model).check_token(token)
    return True
