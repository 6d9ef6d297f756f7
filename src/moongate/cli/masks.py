"""The command `moongate masks`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Console

from moongate.cli.options import Flag, Model, ModelOptions, OptionalFloat, OptionalPath, Output, OutputOptions
from moongate.cli.terminal import print_table, progress_bar, say
from moongate.errors import warn

if TYPE_CHECKING:
    from moongate.annotation.masks import Segmenter

__all__ = ["Masks"]

SMALL, LARGE = 0.03, 0.85
"""Shares of a photo below and above which a mask is probably wrong."""


@dataclass(frozen=True, kw_only=True)
class Masks:
    """Write a mask beside each photo, white where the subject is."""

    photos: Annotated[Path, tyro.conf.Positional]
    """Folder of photos, or one photo."""
    category: str
    """The word for what the subject is, such as dog."""
    segmenter: OptionalPath = None
    """A local model to use instead of the base model: an ONNX file from [1, 3, side, side] to one mask, such as
    U2Net's, or the folder of a CLIPSeg model of transformers."""
    threshold: OptionalFloat = None
    """Value of the map, scaled to 0..1, above which the mask is white. Default: Otsu's threshold."""
    overwrite: Flag = False
    """Replace existing masks."""
    model: Model = field(default_factory=ModelOptions)
    output: Output = field(default_factory=OutputOptions)

    def __call__(self, console: Console) -> dict[str, Any]:
        from moongate.annotation import photos_to_annotate, write_masks
        from moongate.annotation.masks import check_threshold

        check_threshold(self.threshold)
        self.model.check()
        photos = photos_to_annotate(self.photos, self.category)
        segment = self._segmenter()
        with progress_bar(console) as progress:
            task = progress.add_task("Segmenting", total=len(photos), note="")
            masks = write_masks(
                photos,
                segment,
                threshold=self.threshold,
                overwrite=self.overwrite,
                on_photo=lambda done, _total: progress.update(task, completed=done),
            )
        print_table(
            console,
            ("photo", "subject covers", "mask", "file"),
            [(m.photo.name, f"{m.share:.0%}", m.file.name, "written" if m.written else "kept") for m in masks],
        )
        doubtful = [mask.photo.name for mask in masks if not SMALL < mask.share < LARGE]
        if doubtful:
            warn(f"These masks cover almost nothing or almost all of their photo: {', '.join(doubtful)}. Look at them.")
        written = sum(mask.written for mask in masks)
        say(console, f"Wrote {written} of {len(masks)} masks. Look at them: only their white part counts in the loss.")
        return {
            "masks": [
                {"photo": str(m.photo), "file": str(m.file), "share": m.share, "written": m.written} for m in masks
            ]
        }

    def _segmenter(self) -> "Segmenter":
        from moongate.annotation import attention_segmenter, clipseg_segmenter, onnx_segmenter

        if self.segmenter is None:
            return attention_segmenter(self.model.load(), self.category)
        if self.segmenter.is_dir():
            return clipseg_segmenter(self.segmenter, self.category, device=self.model.device or "cpu")
        return onnx_segmenter(self.segmenter)
