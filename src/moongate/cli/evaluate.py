"""The command `moongate evaluate`."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.console import Console

from moongate.cli.options import (
    WITHOUT_DEFAULT,
    Drawing,
    DrawingOptions,
    Dtype,
    Model,
    ModelOptions,
    OptionalPath,
    OptionalStr,
    Paths,
    Texts,
    cache_folder,
    read_concepts,
)
from moongate.cli.terminal import print_table, progress_bar, say
from moongate.errors import OptionError

if TYPE_CHECKING:
    from moongate.backbone import Backbone
    from moongate.concept import Concept
    from moongate.evaluation import Reference, Targets

__all__ = ["Evaluate"]


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Draw many prompts with a concept and measure the pictures."""

    files: Annotated[tuple[Path, ...], tyro.conf.Positional, WITHOUT_DEFAULT] = ()
    """Concept files of any format; several are merged in memory. Without one the model itself is evaluated."""
    prompts: OptionalStr = None
    """object, animal, scene, pair, pocket, pocket-pair, or a text file with one prompt per line, {} for the subject.
    Default: what the model's moongate.json names, else object, or pair for several subjects."""
    count: int = 5
    """Pictures for each prompt. Their seeds are --seed, --seed + 1, and so on."""
    seed: int = 0
    """Seed of the first picture of each prompt."""
    pictures: Paths = ()
    """Folders of pictures that were held out from training, one for each subject in the order of the concepts."""
    training_pictures: Paths = ()
    """Folders of the training pictures, which the paper compares with; the record names them so."""
    reference: OptionalPath = None
    """Folder of real pictures of the category with captions, for KID and FID."""
    features: Texts = ()
    """Networks to measure with: pocket-clip, efficientnet-lite0, clip, clip:FOLDER, dino, inception:FILE.
    Default: what the model's moongate.json names, else clip and dino."""
    drawing: Drawing = field(default_factory=DrawingOptions)
    out: Path = Path("evaluation")
    """Folder for record.json and the pictures. Pictures that are already there are not drawn again."""
    model: Model = field(default_factory=ModelOptions)
    dtype: Dtype = "float32"

    def __call__(self, console: Console) -> None:
        from moongate.evaluation import EvaluationOptions, evaluate, load_network
        from moongate.files import write_atomically

        options = EvaluationOptions(count=self.count, seed=self.seed, sampling=self.drawing.sample_options())
        if not (self.files or self.prompts):
            raise OptionError(
                "Without a concept there is no default set of prompts. Name a set or a file with --prompts."
            )
        backbone, concepts = read_concepts(self.files, self.model, console, dtype=self.dtype)
        for file, concept in zip(self.files, concepts, strict=True):
            if not all(subject.category for subject in concept.subjects) or not concept.subjects:
                raise OptionError(
                    f"{file} does not name the categories of its subjects, which the prompts need. Give it class "
                    "words with `moongate convert FILE --to moongate --category WORD`."
                )
        count = sum(len(concept.subjects) for concept in concepts)
        prompts = self._prompts(backbone, count)
        comparisons = self._comparisons(concepts)
        networks = [load_network(name, device=str(backbone.device)) for name in self.features]
        with progress_bar(console) as progress:
            task = progress.add_task("Drawing", total=None, note="")

            def show(done: int, total: int) -> None:
                progress.update(task, completed=done, total=total)

            record = evaluate(
                backbone,
                _together(backbone, concepts),
                prompts,
                networks or None,
                folder=self.out / "pictures",
                comparisons=comparisons,
                options=options,
                on_picture=show,
            ).to_json()
        record["files"] = [{"name": str(f), "hash": c.hash} for f, c in zip(self.files, concepts, strict=True)]
        write_atomically(self.out / "record.json", (json.dumps(record, indent=1) + "\n").encode())
        _print(record, console)
        say(console, f"Wrote {self.out / 'record.json'}.")

    def _prompts(self, backbone: "Backbone", subjects: int) -> list[str]:
        from moongate.evaluation import default_prompts, read_prompts

        return read_prompts(self.prompts) if self.prompts else default_prompts(backbone, subjects)

    def _comparisons(self, concepts: "Sequence[Concept]") -> "list[Targets | Reference]":
        from moongate.data import Regularization, Subject
        from moongate.evaluation import Reference, Targets

        subjects = [subject for concept in concepts for subject in concept.subjects]
        found: list[Targets | Reference] = []
        kinds: dict[Literal["held out", "training"], tuple[Path, ...]]
        kinds = {"held out": self.pictures, "training": self.training_pictures}
        for kind, folders in kinds.items():
            if folders and len(folders) != len(subjects):
                raise OptionError(
                    f"{len(folders)} folders of {kind} pictures were given for {len(subjects)} subjects. Give one for "
                    "each."
                )
            for index, (folder, subject) in enumerate(zip(folders, subjects, strict=True) if folders else ()):
                pictures = Subject.load(folder, category=subject.category).pictures
                found.append(Targets(pictures=pictures, kind=kind, subject=index))
        if self.reference:
            category = subjects[0].category if subjects else "thing"
            real = Regularization.load(self.reference, category=category, at_most=1_000_000)
            found.append(Reference(pictures=real.pictures, captions=real.captions))
        return found


def _together(backbone: "Backbone", concepts: "Sequence[Concept]") -> "Concept | None":
    """Return the concept, several merged in memory, or None for none."""
    from moongate.merging import MergeOptions, merge

    if len(concepts) > 1:
        return merge(backbone, concepts, options=MergeOptions(cache=cache_folder())).concept
    return concepts[0] if concepts else None


def _print(record: dict[str, Any], console: Console) -> None:
    head = ("measure", "features", "compared with", "value", f"{record['intervals']['level']:.0%} interval")
    subjects = record["concept"]["things"] if record["concept"] else []
    rows = [
        (
            row["measure"],
            row["features"],
            f"{row['pictures']} pictures of {subjects[row['thing']]}" if "pictures" in row else "",
            f"{row['value']:.4f}",
            f"{row['low']:.4f} to {row['high']:.4f}" if "low" in row else "",
        )
        for row in record["measures"]
    ]
    print_table(console, head, rows)
