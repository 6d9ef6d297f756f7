"""What a model says about itself: the optional file `moongate.json` next to its `model_index.json`.

A value that was measured for one model belongs to that model, so it is stored with the weights and no code asks for a
model's name. It knows nothing of methods, prompt sets or networks: their names are checked where they are used.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

from moongate.errors import BackboneError
from moongate.texts import parse_json, read_text

__all__ = ["SETTINGS_FILE", "Settings"]

SETTINGS_FILE = "moongate.json"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Defaults that suit one model. Every key of the file is optional; None or () means that the model has no own."""

    method: str | None = None
    """Name of the training method (`moongate.METHODS`) that is used unless another one is chosen."""
    lr_scale: float = 1.0
    """Factor on the learning rate of every method, so that the methods keep the ratios of the paper."""
    steps_scale: float = 1.0
    """Factor on the number of steps of every method."""
    joint_steps_scale: float | None = None
    """The same where several subjects are taught together; None is `steps_scale`."""
    token_lr_scale: float = 1.0
    """Further factor on the learning rate of new tokens; the paper's is 1."""
    neutral_decay: float = 0.0
    """Strength of the decay that returns neutral captions to the base while weights are trained; the paper has none."""
    guidance: float | None = None
    """Scale of classifier-free guidance for sampling."""
    regularization: str | None = None
    """Where regularization pictures come from (`moongate.regularization.CHOICES`), such as "pool"."""
    prompt_sets: tuple[str, ...] = ()
    """Prompt sets for an evaluation (`moongate.evaluation.PROMPT_SETS`): for one subject, then for two."""
    features: tuple[str, ...] = ()
    """Feature networks for an evaluation (`moongate.evaluation.NETWORKS`)."""
    retrieval_threshold: float = 0.85
    """Lowest cosine similarity at which the text encoder considers a caption near a prompt (paper, Sec. 3.1: 0.85)."""
    rare_tokens: tuple[int, ...] | None = None
    """Ids of rarely used tokens, which initialize new tokens (paper, App. D)."""
    shards: int = 1
    """Equal parts of a training step on a CPU, which as many processes of one thread may share."""

    @classmethod
    def read(cls, file: Path) -> Self:
        """Read the settings of a model folder.

        Args:
            file: The `moongate.json`; a missing file gives the defaults.

        Raises:
            BackboneError: The file is not a JSON object, has an unknown key, or has a value of another type or range.
        """
        if not file.is_file():
            return cls()
        try:
            content = parse_json(read_text(file))
        except (OSError, ValueError) as error:
            raise BackboneError(f"{file} is not valid JSON ({error}). Correct it, or remove it.") from error
        if not isinstance(content, dict):
            raise BackboneError(f'{file} holds {_shown(content)}. It must be an object, such as {{"lr_scale": 2.0}}.')
        return cls.from_json(content, source=str(file))

    @classmethod
    def from_json(cls, content: Mapping[str, Any], *, source: str = SETTINGS_FILE) -> Self:
        """Check the values of `content`, the object in `source`. Raises BackboneError that names file, key, value."""
        known = [field.name for field in fields(cls)]
        values: dict[str, Any] = {}
        for key, value in content.items():
            if key not in known:
                raise BackboneError(
                    f"{source} has the unknown key {key!r} ({_shown(value)}). Known: {', '.join(known)}."
                )
            fits, expected = CHECKS[key]
            if not fits(value):
                raise BackboneError(f"{source} sets {key!r} to {_shown(value)}. It must be {expected}.")
            values[key] = tuple(value) if isinstance(value, list) else value
        return cls(**values)


def _shown(value: Any) -> str:
    """Return a JSON value for an error message, cut to one short line."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_steps_scale(value: Any) -> bool:
    return _is_number(value) and 0 < value <= 100


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_list_of(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and bool(value) and all(map(check, value))


CHECKS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "method": (_is_text, 'a name, such as "custom-diffusion"'),
    "lr_scale": (lambda value: _is_number(value) and value > 0, "a number above 0, such as 4.0"),
    "steps_scale": (_is_steps_scale, "a number above 0 and at most 100, such as 0.5"),
    "joint_steps_scale": (_is_steps_scale, "a number above 0 and at most 100, such as 0.3"),
    "token_lr_scale": (lambda value: _is_number(value) and value > 0, "a number above 0, such as 12.0"),
    "neutral_decay": (lambda value: _is_number(value) and value >= 0, "a number of 0 or more, such as 0.003"),
    "guidance": (lambda value: _is_number(value) and value >= 0, "a number of 0 or more, such as 6.0"),
    "regularization": (_is_text, 'a name, such as "pool" or "generated"'),
    "prompt_sets": (
        lambda value: _is_list_of(_is_text)(value) and len(value) == 2,
        'a list of two names, for one subject and for two, such as ["object", "pair"]',
    ),
    "features": (_is_list_of(_is_text), 'a list of names, such as ["clip", "dino"]'),
    "retrieval_threshold": (lambda value: _is_number(value) and -1 <= value <= 1, "a number in -1..1, such as 0.85"),
    "rare_tokens": (_is_list_of(_is_id), "a list of token ids, such as [42170, 47629]"),
    "shards": (lambda value: _is_id(value) and value > 0, "a whole number above 0, such as 2"),
}
"""For each key: whether a value fits, and what the error asks for."""
