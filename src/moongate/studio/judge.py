"""The page Judge: people compare pictures of two or more methods, with keys; results live, and a page to send."""

import tempfile
from functools import partial
from pathlib import Path
from urllib.parse import urlencode

from nicegui import events, ui
from nicegui.events import KeyEventArguments

from moongate.errors import OptionError
from moongate.files import file_name
from moongate.limits import MAX_TEXT_BYTES
from moongate.preference import (
    PAGE,
    PICTURES,
    QUESTIONS,
    Answer,
    Choice,
    Results,
    Study,
    Trial,
    add,
    answer,
    check_rater,
    read_answers,
    read_sent,
    results_of,
)
from moongate.preference.results import PREFERENCE_HEAD, STRENGTHS_HEAD, preference_rows, strength_rows
from moongate.studio.commands import Command
from moongate.studio.report import table
from moongate.studio.state import Studio
from moongate.studio.studies import folders_of_photos, folders_of_pictures, make_command
from moongate.studio.widgets import (
    Words,
    command_line,
    drop_zone,
    errors_shown,
    heading,
    link,
    live,
    notice,
    paragraph,
    picture,
    progress,
    section,
)

__all__ = ["PATH", "TITLE", "show"]

PATH, TITLE = "/judge", "Judge"


def show(studio: Studio) -> None:
    """Build the page."""
    live(partial(_studies, studio), partial(_show_studies, studio))
    name = ui.context.client.request.query_params.get("study", "")
    if name:
        with errors_shown():
            folder = studio.places.inside(studio.places.studies / name)
            _Judging(studio, folder, Study.open(folder)).build()
    with section("A new study"):
        _Making(studio).build()


def _studies(studio: Studio) -> list[str]:
    return sorted(file.parent.name for file in studio.places.studies.glob("*/study.json"))


def _show_studies(studio: Studio, names: list[str]) -> None:
    if not names:
        paragraph("There is no study yet. Draw the same prompts in two ways on the page Compose, and make one below.")
    with ui.element("div").classes("bar"):
        for name in names:
            link(name, f"{PATH}?{urlencode({'study': name})}").classes("card")


class _Judging:
    """The trials of one rater, and the results of all."""

    def __init__(self, studio: Studio, folder: Path, study: Study) -> None:
        self.studio, self.folder, self.study = studio, folder, study
        self.rater, self.trials = "", list[Trial]()
        self.answered: dict[object, Answer] = {}
        self.at = 0

    def build(self) -> None:
        heading(self.folder.name)
        self.part = ui.element("div").mark("trial")
        with self.part, ui.element("div").classes("bar"):
            field = ui.input("Your name").props("outlined dense").mark("rater")
            field.on("keydown.enter", lambda: self._begin(field.value or ""))
            ui.button("Begin", on_click=lambda: self._begin(field.value or "")).mark("begin")
        ui.keyboard(on_key=self._key)
        with section("Results"):
            live(self._results, self._show_results)
        with section("Raters elsewhere"):
            self._show_page()

    # --- trials -------------------------------------------------------------------------------------------------------

    def _begin(self, name: str) -> None:
        with errors_shown():
            self.rater = check_rater(name)
            self.trials = self.study.trials(self.rater)
            given = read_answers(self.folder, self.study)
            self.answered = {one.trial.key: one for one in given if one.rater == self.rater}
            self._go(self._next(0))

    def _next(self, begin: int) -> int:
        """Return the first trial from one on that has no answer; the number of all if there is none."""
        order = [*range(begin, len(self.trials)), *range(begin)]
        return next((at for at in order if self.trials[at].key not in self.answered), len(self.trials))

    def _go(self, at: int) -> None:
        self.at = at
        self.part.clear()
        with self.part:
            if at >= len(self.trials):
                notice("All questions are answered. Thank you.", level="good")
            else:
                self._show_trial(self.trials[at])

    def _show_trial(self, trial: Trial) -> None:
        item = self.study.items[trial.item]
        progress("Answered", len(self.answered), len(self.trials))
        paragraph(f"{len(self.answered)} of {len(self.trials)} answered", quiet=True).mark("count")
        heading(QUESTIONS[trial.question], level=3).props("aria-live=polite")
        if trial.question == "text":
            paragraph(item.prompt).mark("prompt")
        else:
            with ui.element("div").classes("pictures targets"):
                for number, photo in enumerate(self._photos(trial), 1):
                    picture(self.studio.places, photo, alt=f"target image {number}")
        with ui.element("div").classes("two"):
            self._show_side("1", "left", item.pictures[trial.left])
            self._show_side("2", "right", item.pictures[trial.right])
        with ui.element("div").classes("bar"):
            ui.button("S: skip", on_click=partial(self._choose, "skip")).props("outline").mark("skip")
            ui.button("B: back", on_click=self._back).props("outline").mark("back").set_enabled(self.at > 0)

    def _show_side(self, key: str, side: Choice, file: str) -> None:
        with ui.element("button").classes("choice").props("type=button").mark(side) as button:
            image = ui.element("img")
            image._props.update(
                {"src": self.studio.places.address(self.folder / PICTURES / file), "alt": f"{side} picture"}
            )
            Words("span", f"{key}: {side}")
        button.on("click", partial(self._choose, side))

    def _photos(self, trial: Trial) -> list[Path]:
        targets = (self.study.targets[index] for index in self.study.items[trial.item].targets)
        return [self.folder / PICTURES / photo for target in targets for photo in target.photos]

    def _choose(self, choice: Choice) -> None:
        """Keep an answer; it is on the disk before the next trial is shown."""
        if self.at >= len(self.trials):
            return
        with errors_shown():
            given = Answer.now(self.rater, self.trials[self.at], choice)
            answer(self.folder, self.study, given)
            self.answered[given.trial.key] = given
            self._go(self._next(self.at + 1))

    def _back(self) -> None:
        if 0 < self.at < len(self.trials):
            self._go(self.at - 1)

    def _key(self, event: KeyEventArguments) -> None:
        if not event.action.keydown or event.action.repeat or not self.trials:
            return
        if event.modifiers.ctrl or event.modifiers.alt or event.modifiers.meta:
            return
        choices: dict[str, Choice] = {"1": "left", "2": "right", "s": "skip"}
        name = str(event.key.name).lower()
        if name in choices:
            self._choose(choices[name])
        elif name == "b":
            self._back()

    # --- results ------------------------------------------------------------------------------------------------------

    def _results(self) -> Results:
        return results_of(self.study, read_answers(self.folder, self.study))

    def _show_results(self, results: Results) -> None:
        paragraph(f"Raters: {', '.join(results.raters) or 'none yet'}. {results.trials} trials for each.", quiet=True)
        table(PREFERENCE_HEAD, preference_rows(results))
        for strengths in results.strengths:
            if strengths.values:
                heading(f"Bradley-Terry strengths, {strengths.question}", level=3)
                table(STRENGTHS_HEAD, strength_rows(strengths))
            if strengths.problem:
                paragraph(f"Strengths, {strengths.question}: {strengths.problem}", quiet=True)
        command_line(Command(("judge", "results", str(self.folder))))

    def _show_page(self) -> None:
        with ui.element("p"):
            address = self.studio.places.address(self.folder / PAGE)
            link(f"Download {PAGE}, one file to send to raters", address, download=PAGE)
        zone = drop_zone(
            "Drop the files that raters send back",
            choose="Choose files",
            accept=".json",
            max_file_size=MAX_TEXT_BYTES,
            on_upload=self._take,
            on_rejected=lambda: ui.notify("A file is too large, no JSON, or dropped already.", type="negative"),
        )
        zone.mark("answers")

    async def _take(self, event: events.UploadEventArguments) -> None:
        with errors_shown():
            if event.file.size() > MAX_TEXT_BYTES:
                raise OptionError(f"{event.file.name} is too large for a file of answers.")
            with tempfile.TemporaryDirectory(prefix=".arriving-", dir=self.folder) as place:
                file = Path(place) / f"{file_name(Path(event.file.name).stem)}.json"
                await event.file.save(file)
                sent = read_sent(file, self.study)
            ui.notify(f"{add(self.folder, self.study, sent)} new of {len(sent)} answers.")


class _Making:
    """A new study of folders in the gallery."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self.name, self.methods = "study", list[str]()
        self.words, self.photos = "", ""

    def build(self) -> None:
        paragraph(
            "Choose two or more folders of pictures with the same prompts and seeds, such as the ways of a drawing on "
            "the page Compose. With the words of a subject and its photos, raters also say which "
            "picture shows it better.",
            quiet=True,
        )
        pictures, photos = folders_of_pictures(self.studio.places), folders_of_photos(self.studio.places)
        with ui.element("div").classes("fields"):
            ui.input("Name", value=self.name).props("outlined").bind_value_to(self, "name").mark("study-name")
            chosen = ui.select(pictures, multiple=True, label="Methods: folders of pictures").props(
                "outlined use-chips"
            )
            chosen.bind_value_to(self, "methods").mark("methods")
            words = ui.input("Words of the subject, such as <bear> teddy bear").props("outlined")
            words.bind_value_to(self, "words").mark("words")
            folder = ui.select(photos, label="Its photos", clearable=True).props("outlined")
            folder.bind_value_to(self, "photos").mark("photos")
        command_line(self._shown)
        ui.button("Make the study", on_click=self._make).mark("make")

    def _shown(self) -> Command:
        try:
            return self._command()
        except OptionError:
            return Command(("judge", "make"))

    def _command(self) -> Command:
        return make_command(
            self.studio.places, self.name, self.methods or [], words=self.words, photos=self.photos or ""
        )

    def _make(self) -> None:
        with errors_shown():
            command = self._command()
            self.studio.commands.start(command, name=f"judge-{self.name}")
            ui.notify("The study is being made, and will appear above.")
