"""The command `moongate convert`: other programs' files to concepts, and concepts to their files."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console

from moongate.cli.options import Flag, Loading, LoadingOptions, OptionalInt, OptionalStr, Texts
from moongate.cli.terminal import say, size_of
from moongate.errors import OptionError

if TYPE_CHECKING:
    from moongate.backbone import Backbone
    from moongate.concept import Concept
    from moongate.interop import Format
    from moongate.sampling import Sample

__all__ = ["Convert"]


@dataclass(frozen=True, kw_only=True)
class Convert:
    """Convert a concept from any readable format to another."""

    source: Annotated[Path, tyro.conf.Positional]
    """File, or folder of files that belong together. The format is detected from the content."""
    to: str
    """moongate, adobe, compvis, diffusers, lora, kohya, or embedding."""
    out: Path
    """File to write; a folder for diffusers, lora, kohya and embedding."""
    base: OptionalStr = None
    """Model that the concept belongs to, where the file does not name it. Needed for full weights."""
    rank: OptionalInt = None
    """Maximum rank of each change, for diffusers, lora and kohya.
    Default: the rank that the change has, and 32 for dense changes."""
    token: Texts = ()
    """New names for the tokens, in the order of the file."""
    category: Texts = ()
    """Class words of the subjects, in the order of the file. Most formats do not keep them; merging needs them."""
    license: str = "other"
    """License to name in the model card."""
    pictures: int = 4
    """Sample pictures to draw for the model card. Needs --base."""
    push: OptionalStr = None
    """OWNER/NAME: upload the folder to this repository on the Hugging Face hub."""
    overwrite: Flag = False
    """Replace what is at --out."""
    loading: Loading = field(default_factory=LoadingOptions)

    def __call__(self, console: Console) -> None:
        from moongate import interop

        target = self._target()
        recognized = interop.recognize(self.source)
        name = self.base or (recognized.base if target.needs_base else "")
        base = self.loading.load(name, downloads=self.base is not None) if name else None
        imported = recognized.concept(base=base, tokens=self.token, categories=self.category)
        say(console, f"{self.source}: {recognized.format.title}.")
        options = interop.WriteOptions(base=base, rank=self.rank)
        written = interop.write(imported.concept, self.out, to=self.to, options=options, overwrite=self.overwrite)
        for note in (*imported.notes, *written.notes):
            say(console, f"Note: {note}")
        files = ", ".join(f"{file.name} ({size_of(file)})" for file in written.files)
        say(
            console, f"Wrote {files} to {self.out}." if target.is_folder else f"Wrote {self.out} ({size_of(self.out)})."
        )
        if target.is_folder:
            self._write_card(imported.concept, target, base if self.base else None)
        if self.push:
            say(console, f"Uploaded to {interop.publish(self.out, self.push)}.")

    def _target(self) -> "Format":
        """Return the format to write. Raises OptionError for options that do not fit it, before any work."""
        from moongate import interop

        target = interop.named_format(self.to)
        interop.check_destination(self.out, to=self.to, overwrite=self.overwrite)
        if self.rank is not None and target.keeps_changes != "factors":
            cut = ", ".join(name for name, known in interop.FORMATS.items() if known.keeps_changes == "factors")
            raise OptionError(
                f"--rank cuts changes for {cut}, but {self.to!r} holds no low-rank factors. Leave it out, or make the "
                "concept smaller with `moongate compress` first."
            )
        if self.push and not target.is_folder:
            folders = ", ".join(name for name, known in interop.FORMATS.items() if known.is_folder)
            raise OptionError(f"--push uploads a folder, but {self.to!r} is one file. Choose one of {folders}.")
        if self.push:
            interop.check_login(self.push)
        return target

    def _write_card(self, concept: "Concept", target: "Format", base: "Backbone | None") -> None:
        """Write the model card, with sample pictures if the model was named."""
        from moongate.files import write_atomically
        from moongate.interop import CARD, card_prompts, model_card
        from moongate.pages import png_bytes

        pictures = []
        for number, drawn in enumerate(_drawn(concept, base, card_prompts(concept, self.pictures)) if base else (), 1):
            pictures.append((drawn.prompt, f"sample-{number}.png"))
            write_atomically(self.out / pictures[-1][1], png_bytes(drawn.image))
        title = self.push.split("/")[-1] if self.push else self.out.name
        card = model_card(concept, target, title=title, license=self.license, pictures=pictures)
        write_atomically(self.out / CARD, card.encode())


def _drawn(concept: "Concept", base: "Backbone", prompts: Sequence[str]) -> "Iterator[Sample]":
    """Draw one picture of each prompt."""
    from moongate.sampling import sample

    with concept.applied(base):
        yield from sample(base, prompts, seeds=range(len(prompts)))
