"""What happens while `moongate train` runs: the bar, validation pictures, the page of the run, and a tracker."""

import contextlib
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from moongate.cli.terminal import progress_bar, readable, say, size_of
from moongate.errors import OptionError, first_line, warn

if TYPE_CHECKING:
    from moongate.backbone import Backbone
    from moongate.cli.tracking import Tracker
    from moongate.concept import Concept
    from moongate.data import Subject
    from moongate.run_page import Comparison, Drawn, Part, Status
    from moongate.training import Plan, Step

__all__ = ["Watch", "interruption_explained", "say_best", "say_memory", "say_written"]

SEEDS = range(4)
"""Seeds of the validation pictures."""
TAUGHT_PICTURES = 8
"""Largest number of pictures to learn from that the page shows."""
REWRITTEN_S = 10
"""Least number of seconds between two versions of the page, if no picture is new."""


@dataclass
class Watch:
    """Shows a run on the terminal, on its page and in a tracker; called after each step."""

    backbone: "Backbone"
    run: Path
    console: Console
    show: "Callable[[Step], None]"
    """Moves the bar."""
    prompts: tuple[str, str]
    """What the validation pictures show, and the same for the base model, without tokens."""
    _: KW_ONLY
    every: int
    """Steps between validation pictures; 0 draws none."""
    has_page: bool
    tracker_name: str | None = None
    also: Callable[[Any], None] | None = None
    """Called with each step too."""
    _written: float = field(default=-REWRITTEN_S, init=False)
    _last: "Step | None" = field(default=None, init=False)
    _tracker: "Tracker | None" = field(default=None, init=False)
    _begin: Callable[[], None] = field(default=lambda: None, init=False)
    _base: "list[tuple[Drawn, Any]]" = field(default_factory=list, init=False)
    """The base's own validation pictures, until the folder is held."""

    @contextlib.contextmanager
    def following(self, subjects: "Sequence[Subject]", *, resume: bool) -> Iterator[None]:
        """Follow the training in the block; if it does not end, the page says that the run was stopped."""
        if self.has_page:
            from moongate.ranks import Ranks
            from moongate.run_page import PAGE

            say(self.console, f"The page {self.run / PAGE} follows the training.")
            if Ranks.current().is_first:
                self._draw_base(resume)
        self._begin = lambda: self._begun(subjects)
        try:
            yield
        except BaseException:
            if self._last:
                self.write("stopped")
            raise
        finally:
            if self._tracker:
                self._tracker.finish()

    def _begun(self, subjects: "Sequence[Subject]") -> None:
        """Keep pictures to learn from and those of the base, now that the folder is held."""
        from moongate.data import square
        from moongate.data.pictures import as_pixels
        from moongate.run_page import Album, Drawn

        if self.tracker_name:
            from moongate.cli.tracking import Tracker

            self._tracker = Tracker.of(self.tracker_name, self.run)
        album = Album(self.run)
        if self.has_page:
            pairs = [pair for each in subjects for pair in zip(each.pictures, each.captions, strict=True)]
            for index, (picture, caption) in enumerate(pairs[:TAUGHT_PICTURES]):
                shown = as_pixels(square(picture, self.backbone.resolution_px))
                album.add(Drawn(part="taught", step=0, prompt=caption, seed=index), shown)
        for drawn, image in self._base:
            album.add(drawn, image)

    def __call__(self, step: "Step") -> None:
        """Show a step, draw validation pictures when they are due, and write the page now and then."""
        if self._last is None:
            self._begin()
        self._last = step
        self.show(step)
        if self._tracker:
            self._tracker.log(step)
        if self.also:
            self.also(step)
        is_due = self.every > 0 and step.index % self.every == 0
        if is_due:
            self._validate(step.index)
        if is_due or time.monotonic() - self._written > REWRITTEN_S:
            self.write("running")

    def finish(self, concept: "Concept", pairs: "Sequence[Comparison]") -> None:
        """Draw base beside concept, and write the finished page.

        Args:
            concept: What the run made.
            pairs: Prompts for the base and for the concept.
        """
        if not self.has_page:
            return
        self.write("running")  # its last step, while pictures are drawn
        try:
            self._compare(concept, pairs)
        finally:
            if self.write("finished"):
                say(self.console, f"Wrote {self.run / 'index.html'}.")

    def write(self, status: "Status") -> bool:
        """Write the page again, and return whether it was written; if it cannot be, the training goes on."""
        from moongate.run_page import PAGE, page_of

        if not self.has_page:
            return False
        self._written = time.monotonic()
        try:
            page_of(self.run, status).save(self.run / PAGE)
        except OptionError as error:
            warn(f"{error} The training goes on without this page.")
            return False
        return True

    def _draw_base(self, resume: bool) -> None:
        """Draw the validation pictures of the base, which cannot be drawn anymore once it is trained.

        Those that a resumed run has already are not drawn again.
        """
        from moongate.run_page import Album, drawings

        known = Album(self.run).drawn("validation") if resume else []
        has_base = any(each.step == 0 and each.prompt == self.prompts[1] for each in known)
        if has_base or not (self.every or known):
            return
        say(self.console, f"Drawing {len(SEEDS)} pictures of the base model, with which those on the way are compared.")
        self._base = [*drawings(self.backbone, self.prompts[1:], seeds=SEEDS, step=0, part="validation")]

    def _validate(self, step: int) -> None:
        from moongate.run_page import Album, draw

        album = Album(self.run)
        draw(*(self.backbone, album, self.prompts[:1]), seeds=SEEDS, step=step, part="validation")
        if self._tracker:
            drawn = [each for each in album.drawn("validation") if each.step == step]
            self._tracker.log_pictures([album.image(each) for each in drawn], step)

    def _compare(self, concept: "Concept", pairs: "Sequence[Comparison]") -> None:
        from moongate.run_page import COMPARED_SEEDS, Album, draw, duration, seconds_to_draw

        album = Album(self.run)
        count = 2 * len(pairs) * len(COMPARED_SEEDS)
        speed = self._last.pictures_per_second if self._last else 0
        about = f" in about {duration(seconds_to_draw(count, self.backbone, speed))}" if speed else ""
        say(self.console, f"Drawing {count} pictures for the page{about}. The concept is written; you may stop here.")
        with progress_bar(self.console) as progress:
            task = progress.add_task("Drawing", total=count, note="")

            def drawn(prompts: Sequence[str], seeds: Sequence[int], step: int, part: "Part") -> None:
                advance = partial(progress.advance, task)
                draw(*(self.backbone, album, prompts), seeds=seeds, step=step, part=part, on_picture=advance)

            drawn([pair.base for pair in pairs], COMPARED_SEEDS, 0, "comparison")
            with concept.applied(self.backbone):
                drawn([pair.concept for pair in pairs], COMPARED_SEEDS, 1, "comparison")


@contextlib.contextmanager
def interruption_explained(run: Path, console: Console) -> Iterator[None]:
    """After Ctrl-C, say what was kept."""
    from moongate.run_records import STATE

    try:
        yield
    except KeyboardInterrupt:
        kept = f"The state is in {run}; the same command with --resume continues."
        say(console, f"Stopped. {kept if (run / STATE).exists() else 'No step was done, nothing is kept.'}")
        raise


def say_memory(plan: "Plan", console: Console, *, is_ignored: bool, processes: int | None = None) -> None:
    """Say how much memory a training takes in all its processes, and check on a GPU that it is there.

    Raises:
        OptionError: The GPU surely has too little; the message has the options that would make it fit.
    """
    from moongate.training.memory import available_memory, check_fits, needed

    if is_ignored:
        return
    try:
        need = needed(plan)
    except (RuntimeError, TypeError, AttributeError, AssertionError) as error:
        # A kernel of some device that fake tensors do not know must not keep anyone from training.
        say(console, f"The memory that training takes could not be computed: {first_line(error)}")
        return
    available = available_memory(plan.backbone.device)
    there = f", {readable(available)} are there" if available is not None else ""
    parts = f"model {readable(need.weights)}, optimizer {readable(need.optimizer)}, one step {readable(need.step)}"
    count = processes or 1
    shared = f"{count} processes with a step each, which share the model: {parts}" if count > 1 else parts
    total = need.weights + count * (need.total - need.weights)
    say(console, f"Training takes about {readable(total)} of memory ({shared}){there}.")
    if available is not None:
        check_fits(plan, need, available)


def say_best(run: Path, console: Console, *, keep_best: bool) -> None:
    """Say which of the kept concepts knows the held-out pictures best."""
    from moongate.run_records import held_out_losses, read_steps
    from moongate.training.selection import kept_file

    losses = held_out_losses(read_steps(run))
    if not losses:
        return
    best, last = min(losses, key=lambda step: (losses[step], step)), max(losses)
    text = f"The lowest loss of the held-out pictures is {losses[best]:.4f}, at step {best}"
    if best == last:
        text += ", the last."
    elif keep_best:
        text += f"; this concept was written, not that of step {last} ({losses[last]:.4f})."
    else:
        text += f"; that of the last step is {losses[last]:.4f}. The better one is {kept_file(run, best)}; "
        text += "--resume --keep-best writes it."
    say(console, text)


def say_written(out: Path, example: str, console: Console) -> None:
    """Say what was written, and the command that draws it."""
    command = shlex.join(["moongate", "generate", example, "--concept", str(out)])
    say(console, f"Wrote {out} ({size_of(out)}). Draw it with:\n  {command}")
