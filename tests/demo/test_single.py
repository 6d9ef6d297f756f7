import re
from pathlib import Path

import pytest

from moongate import pocket
from moongate.backbone import Backbone
from moongate.concept import Concept
from moongate.data import Subject
from moongate.demo import single
from moongate.errors import OptionError
from moongate.merging import merge
from moongate.sampling import SampleOptions
from recipe.corpus.catalog import CATALOG, HELD_OUT_MODELS


def test_the_page_shows_everything_and_needs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(single, "PICTURES_PER_PROMPT", 1)
    monkeypatch.setattr(single, "SAMPLING", SampleOptions(steps=2))
    page = single.make_single_demo("teapot", out=tmp_path, steps=2, cache=tmp_path / "cache")
    text = page.read_text()
    assert not re.search(r'(src|href)="(?!data:)', text)
    assert text.count("<img") == 6 + 5 + 5 + 2 * 2  # targets, before, after, two unrelated prompts twice
    for part in (
        "Before",
        "After",
        "Nothing forgotten",
        "Loss",
        "<svg",
        "2 steps in",
        "too few pictures",  # the pool has no photos of teapots
        "photo of a teapot in the desert",
    ):
        assert part in text
    assert "photo of a &lt;teapot&gt; teapot in the desert" in text
    concept = Concept.load(tmp_path / "teapot.safetensors")
    assert concept.subjects[0].words == "<teapot> teapot"
    concept.check_base(Backbone.load("pocket", device="cpu"))
    assert (tmp_path / "overview.png").is_file()
    assert len([*(tmp_path / "cache").glob("gram-*.safetensors")]) == 1, "one for all processes and the next demo"


@pytest.mark.slow
def test_what_is_taught_in_the_usual_precision_is_recognized_and_leaves_other_words_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The judge saw the house in 15 of 20 pictures after training, and in 2 before (recipe/LOG.md)."""
    monkeypatch.setattr(single, "UNRELATED_CATEGORIES", ())
    stages: list[str] = []
    single.make_single_demo("drawn-house", out=tmp_path, on_stage=stages.append)
    before, after = map(int, re.findall(r"(\d+) of 20", stages[-1]))
    assert before <= 6
    assert after >= 13
    concept = Concept.load(tmp_path / "drawn-house.safetensors")
    (subject,) = merge(Backbone.load("pocket", device="cpu"), [concept]).report.subjects
    assert subject.drift_alone < 0.3, "without neutral decay it is 1.3 times what the base makes of neutral captions"


def test_the_unrelated_photos_are_of_categories_that_pocket_saw_photos_of() -> None:
    """Of houses it saw drawings alone, so that the demo's "photo of a house" was none, before and after."""
    for category in single.UNRELATED_CATEGORIES:
        assert set(CATALOG[category]["models"]) - HELD_OUT_MODELS


@pytest.mark.parametrize("name", pocket.examples())
def test_the_demo_draws_an_example_where_none_of_its_pictures_shows_it(name: str) -> None:
    example = pocket.example(name)
    subject = Subject.load(example.training, category=example.category, token="<it>")
    prompts = [context.describe(f"<it> {example.category}") for context in single.contexts(example, subject)]
    assert len(set(prompts)) == single.CONTEXTS
    assert not set(prompts) & set(subject.captions)
    assert all(prompt.startswith(f"{example.style} of a <it> {example.category} ") for prompt in prompts)


def test_an_unknown_example_is_named_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="no example 'unicorn'"):
        single.make_single_demo("unicorn", out=tmp_path / "demo")
    assert not (tmp_path / "demo").exists()
