"""The command `moongate captions`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Console

from moongate.cli.options import Flag, Name, OptionalPath, OptionalStr, Output, OutputOptions
from moongate.cli.terminal import print_table, say
from moongate.errors import OptionError

if TYPE_CHECKING:
    from moongate.annotation.describers import Describer

__all__ = ["Captions"]


@dataclass(frozen=True, kw_only=True)
class Captions:
    """Write a caption to edit beside each photo."""

    photos: Annotated[Path, tyro.conf.Positional]
    """Folder of photos, or one photo."""
    category: str
    """The word for what the subject is, such as dog."""
    template: OptionalStr = None
    """Give all photos this caption, with {} for the subject, instead of looking at them."""
    color: Flag = False
    """Name the color of the subject too. What a caption says, the new word does not learn."""
    captioner: OptionalPath = None
    """Folder of a BLIP model of transformers (BlipForConditionalGeneration), which then writes the captions."""
    model: Name = "pocket"
    """Where place, style and color are looked up: pocket, or another CLIP model.
    A model without an image tower gives all photos one caption."""
    device: Name = "cpu"
    """Device to compute on, such as cpu or cuda."""
    overwrite: Flag = False
    """Replace existing text files."""
    output: Output = field(default_factory=OutputOptions)

    def __call__(self, console: Console) -> dict[str, Any]:
        from moongate.annotation import photos_to_annotate, write_captions

        self._check_choice()
        photos = photos_to_annotate(self.photos, self.category)
        stubs = write_captions(photos, self._describer(console), overwrite=self.overwrite)
        rows = [
            (stub.photo.name, stub.description.caption, stub.description.found.get("color", ""), _state(stub.written))
            for stub in stubs
        ]
        print_table(console, ("photo", "caption", "color", "file"), rows)
        written = sum(stub.written for stub in stubs)
        say(
            console,
            f"Wrote {written} of {len(stubs)} captions. Correct them: what they say, the new word does not learn.",
        )
        return {
            "captions": [
                {
                    "photo": str(stub.photo),
                    "file": str(stub.file),
                    "caption": stub.description.caption,
                    "found": dict(stub.description.found),
                    "written": stub.written,
                }
                for stub in stubs
            ]
        }

    def _check_choice(self) -> None:
        """Raise OptionError for an option that another one would make useless."""
        chosen = "--template" if self.template is not None else "--captioner" if self.captioner else None
        given = {"--captioner": self.captioner, "--color": self.color, "--model": self.model != "pocket"}
        if ignored := [name for name, value in given.items() if value and chosen and name != chosen]:
            raise OptionError(f"{ignored[0]} would be ignored, because {chosen} gives the captions. Leave one out.")

    def _describer(self, console: Console) -> "Describer":
        from moongate.annotation import blip_describer, clip_describer, template_describer
        from moongate.errors import BackboneError
        from moongate.evaluation import Clip

        if self.template is not None:
            return template_describer(self.template)
        if self.captioner:
            return blip_describer(self.captioner, self.category, device=self.device)
        if self.model != "pocket" and (Path(self.model) / "model_index.json").is_file():
            try:
                clip = Clip.load(self.model, device=self.device)
            except BackboneError as error:
                say(console, f"{error} Without it all photos get one caption.", style="yellow")
                return template_describer()
        else:
            clip = Clip.load(self.model, device=self.device)
        return clip_describer(clip, self.category, says_color=self.color)


def _state(written: bool) -> str:
    return "written" if written else "kept"
