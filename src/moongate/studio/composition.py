"""What the page Compose shows: the chosen concepts and how they are drawn together, as a file for all browsers."""

import contextlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Self

from moongate.data.captions import with_words
from moongate.errors import MoongateError, OptionError
from moongate.files import file_name, free_path, write_atomically
from moongate.studio.commands import Command
from moongate.studio.drafts import drafts
from moongate.studio.drawings import Chosen, checked_prompt, generate_command
from moongate.studio.places import CONCEPT, Places
from moongate.studio.shelf import Card
from moongate.texts import parse_json, read_text

__all__ = ["WAYS", "Box", "Composition", "joint_job", "templates"]

FILE = "composition.json"
WAYS: Mapping[str, str] = {
    "merge": "merged in closed form",
    "add": "their changes added",
    "joint": "taught jointly",
}
"""How several concepts are drawn together, side by side."""
MAX_STRENGTH = 1.5
Box = tuple[float, float, float, float]
"""Left, top, right and bottom as shares of the picture."""


@dataclass(frozen=True, kw_only=True)
class Composition:
    """What is chosen. Paths are absolute; files that are gone are left out when it is read."""

    concepts: tuple[Chosen, ...] = ()
    prompt: str = ""
    """With `{}` or `{0}` and `{1}` for the words of the subjects, or with the words themselves."""
    seed: int = 0
    count: int = 4
    steps: int = 50
    ways: tuple[str, ...] = ("merge",)
    regions: Mapping[str, Box] = field(default_factory=dict)
    """Where subjects belong, by their words; none leaves it to the model."""
    drawn: str = ""
    """Folder in the gallery with what was drawn last."""

    @classmethod
    def read(cls, places: Places) -> Self:
        """Return what was chosen last; defaults for what is missing or damaged."""
        try:
            facts = parse_json(read_text(places.root / FILE))
            concepts = []
            for each in facts["concepts"]:
                with contextlib.suppress(MoongateError):
                    file = places.inside(each["file"])
                    if file.is_file() and file.suffix == CONCEPT:
                        concepts.append(Chosen(file=file, strength=_within(float(each["strength"]))))
            return cls(
                concepts=tuple(concepts),
                prompt=str(facts["prompt"]),
                seed=int(facts["seed"]),
                count=int(facts["count"]),
                steps=int(facts["steps"]),
                ways=tuple(way for way in WAYS if way in facts["ways"]),
                regions={str(words): _box(box) for words, box in facts["regions"].items()},
                drawn=str(facts["drawn"]),
            )
        except (OSError, ValueError, OverflowError, TypeError, LookupError, AttributeError):
            return cls()

    def write(self, places: Places) -> None:
        """Keep what is chosen."""
        facts = asdict(self) | {"concepts": [{"file": str(c.file), "strength": c.strength} for c in self.concepts]}
        write_atomically(places.root / FILE, json.dumps(facts, indent=1).encode())

    def added(self, file: Path) -> Self:
        """Return the composition with one more concept; one that is there stays as it is."""
        if any(concept.file == file for concept in self.concepts):
            return self
        return replace(self, concepts=(*self.concepts, Chosen(file=file)))

    def removed(self, file: Path) -> Self:
        """Return the composition without a concept."""
        return replace(self, concepts=tuple(concept for concept in self.concepts if concept.file != file))

    def strengthened(self, file: Path, strength: float) -> Self:
        """Return the composition with another strength of a concept."""
        concepts = [Chosen(file=c.file, strength=_within(strength)) if c.file == file else c for c in self.concepts]
        return replace(self, concepts=tuple(concepts))

    def drawing(self, words: Sequence[str], places: Places) -> tuple[Path, dict[str, Command]]:
        """Return a new folder of the gallery, and the command that draws into it for each way.

        Args:
            words: The words of all subjects.
            places: The chosen folders.

        Raises:
            OptionError: There is no concept or no way, or the prompt cannot be used.
        """
        if not self.concepts:
            raise OptionError("No concept is chosen. Add one or several first.")
        prompt = checked_prompt(filled(self.prompt, words))
        regions = [
            f"{name}=" + ",".join(f"{edge:g}" for edge in box) for name, box in self.regions.items() if name in words
        ]
        ways = self.ways if len(self.concepts) > 1 else ("alone",)
        if not ways:
            raise OptionError("No way is chosen. Choose at least one of merge, add and joint.")
        folder = free_path(places.gallery / file_name(prompt.lower()))
        found = {}
        for way in ways:
            concepts = [Chosen(file=self.joint_file(places))] if way == "joint" else list(self.concepts)
            found[way] = generate_command(
                [prompt],
                concepts,
                out=folder / way,
                seed=self.seed,
                count=self.count,
                together="add" if way == "add" else "merge",
                regions=regions,
                more={"steps": self.steps},
            )
        return folder, found

    def joint_file(self, places: Places) -> Path:
        """Return the file of the concept that is taught all of these subjects at once; it may not exist."""
        names = "-".join(sorted(concept.file.stem for concept in self.concepts))
        return places.concepts / f"{file_name(f'joint-{names}')}{CONCEPT}"


def filled(prompt: str, words: Sequence[str]) -> str:
    """Return a prompt with the words of subjects in its places: `{}` and `{0}` are the first, `{1}` is the second.

    Raises:
        OptionError: It has places for more subjects than there are.
    """
    filled = prompt.replace("{}", "{0}")
    for index, word in enumerate(words):
        filled = with_words(filled, re.escape(f"{{{index}}}"), word)
    if "{" in filled or "}" in filled:
        raise OptionError(f"The prompt {prompt!r} names more subjects than the {len(words)} that are chosen.")
    return filled


def templates(subjects: int) -> list[str]:
    """Return prompts with places for one subject, or for two or more."""
    text = files("moongate").joinpath("evaluation", "prompts.json").read_text(encoding="utf-8")
    names = ("pocket", "object") if subjects < 2 else ("pocket-pair", "pair")
    return [prompt for name in names for prompts in json.loads(text)[name].values() for prompt in prompts]


def joint_job(composition: Composition, cards: Sequence[Card], places: Places, *, model: str) -> dict[str, Any]:
    """Return the training of all subjects at once, as a job of the fleet.

    The photos are those on the page Teach whose category and token are the subject's.

    Args:
        composition: What is chosen.
        cards: The cards of the chosen concepts.
        places: The chosen folders.
        model: The model where a concept names none.

    Raises:
        OptionError: There are no photos of a subject.
    """
    subjects = [_with_photos(words, places) for card in cards for words in card.words]
    name = composition.joint_file(places).stem
    base = next((card.model for card in cards if card.model), model)
    return {"name": name, "concepts": subjects, "model": base, "regularization": "auto"}


def _with_photos(words: str, places: Places) -> dict[str, str]:
    token, category = words.split(" ", 1) if words.startswith("<") and " " in words else ("", words)
    subject = {"category": category, **({"token": token} if token else {})}
    for draft in drafts(places.photos):
        if draft.settings.words == words and any(not photo.is_held_out for photo in draft.photos()):
            return {"pictures": str(draft.teach), **subject}
    raise OptionError(
        f"There are no photos of {words} on the page Teach, with this category and token. Add them there, so that all "
        "subjects can be taught at once."
    )


def _within(strength: float) -> float:
    return min(max(strength, 0.0), MAX_STRENGTH) if strength == strength else 1.0


def _box(box: Sequence[float]) -> Box:
    left, top, right, bottom = (min(max(float(edge), 0.0), 1.0) for edge in box)
    return left, top, right, bottom
