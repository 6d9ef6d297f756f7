"""Pocket: the small model that comes with Moongate, with example subjects and captioned regularization pictures.

Data and the paths to it, nothing else.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from moongate.errors import OptionError
from moongate.files import digest

__all__ = [
    "POOL",
    "Example",
    "example",
    "examples",
    "pool_folder",
    "recognizer_file",
    "taught_folder",
    "weights_digest",
    "weights_folder",
]

_HERE = Path(__file__).parent
POOL = "pool"
"""Name of the captioned regularization pictures, where a command or a setting asks for them."""
SETTINGS_FILE = "moongate.json"
MEASURED = ("rare_tokens", "lr_scale", "token_lr_scale", "neutral_decay", "retrieval_threshold")
"""Settings of the weights that change what a training or a retrieval gives."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """A subject that pocket has never seen: six pictures for training and twenty for evaluation."""

    name: str
    category: str
    style: str
    """The kind of its pictures: `photo` (of a 3-D model) or `drawing`."""
    source: str
    """Where the model or the drawing comes from."""
    folder: Path

    @property
    def training(self) -> Path:
        """Folder of the training pictures, each with a caption that says where the subject is."""
        return self.folder / "train"

    @property
    def evaluation(self) -> Path:
        """Folder of the evaluation pictures; none of them is a training picture."""
        return self.folder / "evaluation"


def weights_folder() -> Path:
    """Return the folder that `StableDiffusionPipeline.from_pretrained` loads."""
    return _HERE / "weights"


def weights_digest(folder: Path | None = None) -> str:
    """Return twelve hexadecimal digits that identify the content of a weights folder (pocket's by default).

    Of `moongate.json` only the keys in `MEASURED` count. The others are defaults of commands (method, guidance and the
    like), which every record names itself, so that a new default does not make earlier records outdated.
    """
    paths = sorted(path for path in (folder or weights_folder()).rglob("*") if path.is_file())
    return digest(*(_measured(path) if path.name == SETTINGS_FILE else path.read_bytes() for path in paths))


def recognizer_file() -> Path:
    """Return the weights of the recognizer, a classifier of pocket's pictures."""
    return _HERE / "recognizer" / "model.safetensors"


def taught_folder() -> Path:
    """Return the folder of taught concepts, a run and pictures, which the studio's demo unpacks."""
    return _HERE / "taught"


def pool_folder() -> Path:
    """Return the folder of captioned regularization pictures."""
    return _HERE / "pool"


def examples() -> dict[str, Example]:
    """Return the examples by name, sorted."""
    known = {}
    for path in sorted((_HERE / "concepts").glob("*/concept.json")):
        facts = json.loads(path.read_text())
        known[path.parent.name] = Example(
            name=path.parent.name,
            category=facts["category"],
            style=facts["style"],
            source=facts["source"],
            folder=path.parent,
        )
    return known


def example(name: str) -> Example:
    """Return an example by name. Raises OptionError, which lists the names, if there is none."""
    known = examples()
    if name not in known:
        raise OptionError(f"There is no example {name!r}. Known: {', '.join(known)}.")
    return known[name]


def _measured(settings: Path) -> bytes:
    """Return the part of a `moongate.json` that `weights_digest` counts."""
    values = json.loads(settings.read_text(encoding="utf-8"))
    return (json.dumps({key: values[key] for key in MEASURED if key in values}) + "\n").encode()
