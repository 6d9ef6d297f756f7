"""The command `moongate evaluate`."""

import json
from collections.abc import Callable, Sequence
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
    Flag,
    Model,
    ModelOptions,
    OptionalPath,
    OptionalStr,
    Output,
    OutputOptions,
    Paths,
    Texts,
    cache_folder,
    flat,
    read_concepts,
)
from moongate.cli.terminal import print_table, progress_bar, say
from moongate.errors import OptionError, warn

if TYPE_CHECKING:
    from moongate.backbone import Backbone
    from moongate.concept import Concept, SubjectRecord
    from moongate.evaluation import Evaluation, EvaluationOptions, Reference, Targets

__all__ = ["Evaluate"]


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Draw many prompts with a concept and measure the pictures."""

    files: Annotated[tuple[Path, ...], tyro.conf.Positional, WITHOUT_DEFAULT] = ()
    """Concept files of any format; several are merged in memory.
    Without one the model itself is evaluated, on a file of --prompts without {}."""
    prompts: OptionalStr = None
    """object, animal, scene, pair, pocket, pocket-pair, or a text file with one prompt per line, {} for the subject.
    Default: what the model's moongate.json names, else object, or pair for several subjects."""
    protocol: OptionalStr = None
    """customconcept101:FOLDER takes prompts and training pictures from that benchmark, by the concept's categories.
    customconcept101:FOLDER#NAME chooses one of several entries, such as pet_cat5 or pet_cat5+pet_dog3."""
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
    """Folder for record.json, index.html and the pictures. Pictures that are already there are not drawn again."""
    overwrite: Flag = False
    """Replace the record of another concept in --out."""
    without_base: Flag = False
    """Do not draw and measure the base alone for the page, which takes half of the time."""
    model: Model = field(default_factory=ModelOptions)
    dtype: Dtype = "float32"
    output: Output = field(default_factory=OutputOptions)

    def __call__(self, console: Console) -> dict[str, Any]:
        from moongate.evaluation import evaluate, load_network
        from moongate.evaluation.benchmark import default_features

        options = self.checked()
        self._check_files()
        backbone, concepts = read_concepts(self.files, self.model, console, dtype=self.dtype)
        self._check_record([concept.hash for concept in concepts])
        _check_categories(self.files, concepts)
        subjects = [subject for concept in concepts for subject in concept.subjects]
        prompts, training_pictures = self._prompts(backbone, subjects)
        comparisons = self._comparisons(subjects, training_pictures)
        names = flat(self.features) or default_features(backbone)
        networks = [load_network(name, device=str(backbone.device)) for name in names]
        concept = _together(backbone, concepts)
        with progress_bar(console) as progress:
            task = progress.add_task("Drawing", total=None, note="")

            def measured(concept: "Concept | None", prompts: Sequence[str]) -> "Evaluation":
                return evaluate(
                    backbone,
                    concept,
                    prompts,
                    networks,
                    folder=self.out / "pictures",
                    comparisons=comparisons,
                    options=options,
                    on_picture=lambda done, total: progress.update(task, completed=done, total=total),
                )

            evaluation = measured(concept, prompts)
            page = self._page(backbone, concept, evaluation, comparisons, measured)
        record = self._write(evaluation, concepts)
        _print(evaluation, console)
        say(console, f"Wrote {self.out / 'record.json'} and {page}.")
        return {"out": str(self.out), **record}

    def _page(
        self,
        backbone: "Backbone",
        concept: "Concept | None",
        evaluation: "Evaluation",
        comparisons: "Sequence[Targets | Reference]",
        measured: "Callable[[Concept | None, Sequence[str]], Evaluation]",
    ) -> Path:
        """Write the page, with the base alone beside the concept."""
        from moongate.evaluation import Targets, base_alone, kept_pictures, write_page

        folder = self.out / "pictures"
        drawn = kept_pictures(backbone, concept, [p.drawn for p in evaluation.prompts], evaluation, folder)
        base, base_drawn = None, None
        if concept and not self.without_base:
            plain = base_alone(concept)
            read = list(dict.fromkeys(prompt.read for prompt in evaluation.prompts))
            base = measured(plain, read)
            base_drawn = kept_pictures(backbone, plain, read, base, folder)
        words = [subject.words for subject in concept.subjects] if concept else []
        photos = {f"{words[t.subject]} ({t.kind})": t.pictures for t in comparisons if isinstance(t, Targets)}
        return write_page(evaluation, self.out, drawn=drawn, base=base, base_drawn=base_drawn, photos=photos)

    def checked(self) -> "EvaluationOptions":
        """Return the library's options.

        Raises:
            OptionError, PictureError: An option cannot be used; neither a model nor a concept file was read.
        """
        from moongate.data.folders import find_pictures
        from moongate.evaluation import EvaluationOptions, check_network, check_protocol, filled, read_prompts
        from moongate.files import check_folder
        from moongate.sampling import check_seeds

        options = EvaluationOptions(count=self.count, seed=self.seed, sampling=self.drawing.sample_options())
        check_folder(self.out)
        check_seeds([self.seed, self.seed + self.count])
        if self.protocol and self.prompts:
            raise OptionError(f"The protocol {self.protocol} has prompts of its own. Leave out --prompts.")
        if self.protocol and not self.files:
            raise OptionError("A protocol chooses prompts by the categories of a concept. Name a concept file.")
        if not (self.files or self.prompts):
            raise OptionError(
                "Without a concept there is no default set of prompts. Name a file with --prompts, whose prompts have "
                "no {} for a subject."
            )
        prompts = read_prompts(self.prompts) if self.prompts else []
        if not self.files:
            for prompt in prompts:
                filled(prompt, ())
        if self.protocol:
            check_protocol(self.protocol)
        for name in flat(self.features):
            check_network(name)
        reference = [self.reference] if self.reference else []
        for folder in (*flat(self.pictures), *flat(self.training_pictures), *reference):
            find_pictures(folder)
        return options

    def _check_files(self) -> None:
        """Check what concept files say themselves, if all are Moongate's own; others are read with their model."""
        from moongate.evaluation import read_protocol
        from moongate.summary import read_summary

        summaries = [summary for file in self.files if (summary := read_summary(file))]
        if len(summaries) < len(self.files):
            return
        self._check_record([summary.hash for summary in summaries])
        categories = [str(subject["category"]) for summary in summaries for subject in summary.facts["subjects"]]
        if not (categories and all(categories)):
            return  # `_check_categories` says it
        self._check_number(len(categories))
        if self.protocol:
            read_protocol(self.protocol, categories)

    def _check_number(self, subjects: int) -> None:
        """Raise OptionError unless there is a folder of pictures for each subject, or none."""
        for kind, folders in (("held out", flat(self.pictures)), ("training", flat(self.training_pictures))):
            if len(folders) not in (0, subjects):
                raise OptionError(
                    f"{len(folders)} folders of {kind} pictures were given for {subjects} subjects. Give one for each."
                )

    def _check_record(self, hashes: Sequence[str]) -> None:
        """Raise OptionError if the folder has the record of other concepts; the record of these is made again."""
        from moongate.texts import parse_json, read_text

        record = self.out / "record.json"
        if self.overwrite or not record.exists():
            return
        try:
            files = parse_json(read_text(record))["files"]
            earlier = [(str(file["hash"]), str(file["name"])) for file in files]
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise OptionError(
                f"{record} is not the record of an evaluation. Choose another --out, or replace it (--overwrite)."
            ) from error
        if [known for known, _ in earlier] != list(hashes):
            names = " and ".join(name for _, name in earlier) or "the base alone"
            raise OptionError(f"{record} is of {names}. Choose another --out, or replace it (--overwrite).")

    def _prompts(
        self, backbone: "Backbone", subjects: "Sequence[SubjectRecord]"
    ) -> tuple[Sequence[str], tuple[Path, ...]]:
        """Return the prompts, and the folders of training pictures to compare with."""
        from moongate.evaluation import default_prompts, read_prompts, read_protocol

        if not self.protocol:
            prompts = read_prompts(self.prompts) if self.prompts else default_prompts(backbone, len(subjects))
            return prompts, flat(self.training_pictures)
        protocol = read_protocol(self.protocol, [subject.category for subject in subjects])
        missing = [folder for folder in protocol.pictures if not folder.is_dir()]
        if missing and not flat(self.training_pictures):
            warn(f"{missing[0]} is missing, so pictures are not compared with it.")
        return protocol.prompts, flat(self.training_pictures) or (() if missing else protocol.pictures)

    def _comparisons(
        self, subjects: "Sequence[SubjectRecord]", training_pictures: Sequence[Path]
    ) -> "list[Targets | Reference]":
        """Read the pictures to compare with."""
        from moongate.data import Regularization, Subject
        from moongate.evaluation import Reference, Targets

        self._check_number(len(subjects))
        comparisons: list[Targets | Reference] = []
        kinds: dict[Literal["held out", "training"], Sequence[Path]]
        kinds = {"held out": flat(self.pictures), "training": training_pictures}
        for kind, folders in kinds.items():
            for index, (folder, subject) in enumerate(zip(folders, subjects, strict=True) if folders else ()):
                pictures = Subject.load(folder, category=subject.category).pictures
                comparisons.append(Targets(pictures=pictures, kind=kind, subject=index))
        if self.reference:
            category = subjects[0].category if subjects else "thing"
            real = Regularization.load(self.reference, category=category, at_most=1_000_000)
            comparisons.append(Reference(pictures=real.pictures, captions=real.captions))
        return comparisons

    def _write(self, evaluation: "Evaluation", concepts: "Sequence[Concept]") -> dict[str, Any]:
        from moongate.files import write_atomically

        files = [{"name": str(file), "hash": c.hash} for file, c in zip(self.files, concepts, strict=True)]
        protocol = {"protocol": self.protocol} if self.protocol else {}
        record = {**evaluation.to_json(), **protocol, "files": files}
        write_atomically(self.out / "record.json", (json.dumps(record, indent=1) + "\n").encode())
        return record


def _check_categories(files: Sequence[Path], concepts: "Sequence[Concept]") -> None:
    """Raise OptionError for a concept whose subjects have no category to fill into prompts."""
    for file, concept in zip(files, concepts, strict=True):
        if not concept.subjects or not all(subject.category for subject in concept.subjects):
            raise OptionError(
                f"{file} does not name the categories of its subjects, which the prompts need. Give it some "
                "with `moongate convert FILE --to moongate --category WORD`."
            )


def _together(backbone: "Backbone", concepts: "Sequence[Concept]") -> "Concept | None":
    """Return the concept, several merged in memory, or None if there is none."""
    from moongate.merging import MergeOptions, merge

    if len(concepts) > 1:
        return merge(backbone, concepts, options=MergeOptions(cache=cache_folder())).concept
    return concepts[0] if concepts else None


def _print(evaluation: "Evaluation", console: Console) -> None:
    head = ("measure", "features", "compared with", "value", f"{evaluation.level:.0%} interval")
    rows = [
        (
            measure.measure,
            measure.features,
            evaluation.compared_with(measure),
            f"{measure.value:.4f}",
            "" if measure.low is None else f"{measure.low:.4f} to {measure.high:.4f}",
        )
        for measure in evaluation.measures
    ]
    print_table(console, head, rows)
