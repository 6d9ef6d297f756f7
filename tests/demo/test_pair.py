import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import write_pictures
from moongate import pocket
from moongate.backbone import Backbone
from moongate.concept import Concept
from moongate.data.folders import find_pictures
from moongate.data.pictures import read_picture
from moongate.demo import pair, single
from moongate.demo.pair import PairDemo, Strategy, make_pair_demo
from moongate.demo.recognizer import Classes, Recognizer, recognized
from moongate.errors import OptionError
from moongate.sampling import SampleOptions

PAIR = ("bulldog", "siameseCat")  # a dog and a cat, words that the tiny tokenizer knows
STRATEGIES = ["pocket itself", "joint", "merge", "sequential", "addition"]


@pytest.fixture(autouse=True, scope="module")
def _long_prompts() -> Iterator[None]:
    """Let prompts be longer than the 16 tokens that the tiny text encoder reads."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Backbone, "cut_off", lambda _self, _caption: "")
        yield


@pytest.fixture
def recognizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recognizer:
    """A random one in the place of the one that is shipped."""
    torch.manual_seed(3)
    made = Recognizer(Classes(("dog", "cat", "chair"), ("here",), ("photo",)), (4, 4, 4)).eval()
    made.save(tmp_path / "recognizer.safetensors")
    monkeypatch.setattr("moongate.demo.recognizer.recognizer_file", lambda: tmp_path / "recognizer.safetensors")
    return Recognizer.load()


@pytest.fixture
def make(
    tiny: Backbone, recognizer: Recognizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., PairDemo]:
    """Runs the demo with the tiny backbone, a tiny pool and two denoising steps, into the folder `out`."""
    write_pictures(tmp_path / "pool", count=4, seed=0)
    for index, category in enumerate(("dog", "cat", "dog", "cat")):
        (tmp_path / "pool" / f"{index}.txt").write_text(f"photo of a {category}")
    monkeypatch.setattr(pair, "pool_folder", lambda: tmp_path / "pool")
    monkeypatch.setattr(Backbone, "load", lambda *_arguments, **_options: tiny)
    monkeypatch.setattr(single, "SAMPLING", SampleOptions(steps=2))
    return lambda **options: make_pair_demo(PAIR, out=tmp_path / "out", **{"steps": 2, "count": 1, **options})


def test_the_page_shows_everything_and_needs_nothing(make: Callable[..., PairDemo], tmp_path: Path) -> None:
    stages: list[str] = []
    steps: list[int] = []
    made = make(on_stage=stages.append, on_step=lambda step: steps.append(step.steps))
    text = made.page.read_text()
    assert not re.search(r'(src|href)="(?!data:)', text)
    assert text.count("<img") == 2 * 6 + 5 * 8  # what was taught, then every strategy and prompt
    assert made.head == ("strategy", "both", "dog", "cat", "seconds")
    for part in (
        *STRATEGIES,
        "&lt;bulldog&gt; dog and &lt;siamesecat&gt; cat in one picture",
        "Neutral captions drift",
    ):
        assert part in text
    assert steps == [2] * 2 + [2] * 2 + [4] * 4 + [2] * 2  # alone, alone, joint, sequential
    assert [stage for stage in stages if stage.startswith("Drawing")] == [
        f"Drawing 8 pictures: {strategy}" for strategy in STRATEGIES
    ]
    with Image.open(tmp_path / "out" / "overview.png") as overview:
        assert overview.width > 8 * 64
        assert overview.height > 6 * 64
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "index.html",
        "overview.png",
        "figures.json",
        *(f"{name}.safetensors" for name in (*PAIR, "merged")),
    }


def test_figures_are_what_the_recognizer_sees_in_the_pictures(
    make: Callable[..., PairDemo], recognizer: Recognizer, tmp_path: Path
) -> None:
    made = make(count=2)
    figures = json.loads((tmp_path / "out" / "figures.json").read_text())
    assert list(figures["recognized"]) == STRATEGIES
    assert figures["pictures_of_each_strategy"] == 16
    for name, number in zip(PAIR, (0, 1), strict=True):
        real = np.stack([read_picture(path) for path in find_pictures(pocket.example(name).evaluation)])
        known = (recognizer.scores(real)[:, :3].topk(2).indices == number).any(1).double().mean()
        assert figures["recognized_in_real_pictures"][pocket.example(name).category] == pytest.approx(float(known))
    for strategy in made.strategies:
        every = np.stack([picture for some in strategy.pictures.values() for picture in some])
        scores = recognizer.scores(every)[:, :3]
        both = recognized(scores, [{0, 1}] * 16).double().mean()
        first = (scores.argsort(1, descending=True)[:, :2] == 0).any(1).double().mean()
        shares = figures["recognized"][strategy.name]
        assert (shares["both"], shares["first"]) == pytest.approx((float(both), float(first)), abs=1e-4)
        assert strategy.row[1] == f"{float(both):.0%}"


def test_each_strategy_draws_with_what_its_name_says(
    make: Callable[..., PairDemo], tiny: Backbone, tmp_path: Path
) -> None:
    strategies = {strategy.name: strategy for strategy in make().strategies}
    first, second, merged = (Concept.load(tmp_path / "out" / f"{name}.safetensors") for name in (*PAIR, "merged"))
    prompts = list(strategies["merge"].pictures)
    with merged.applied(tiny):
        assert_drawn(tiny, strategies["merge"], prompts)
    with first.applied(tiny), second.applied(tiny):
        assert_drawn(tiny, strategies["addition"], prompts)
    plain = [re.sub(r"<\w+> ", "", prompt) for prompt in prompts]
    assert_drawn(tiny, strategies["pocket itself"], plain)
    for name in ("joint", "merge", "sequential", "addition"):
        assert list(strategies[name].pictures) == prompts
    assert merged.tokens.keys() == {"<bulldog>", "<siamesecat>"}
    assert (first.record["rare_token"], second.record["rare_token"]) == (0, 1)


def assert_drawn(tiny: Backbone, strategy: Strategy, prompts: list[str]) -> None:
    again = single.draw(tiny, prompts, count=1)
    for prompt in prompts:
        np.testing.assert_array_equal(strategy.pictures[prompt], again[prompt])


def test_prompts_name_the_two_in_both_orders_as_the_corpus_does() -> None:
    prompts = pair._prompts(["<a> armchair", "vase"], style="photo")
    assert len(prompts) == len(set(prompts)) == 8
    assert prompts[0] == "photo of a <a> armchair and a vase in a garden"
    assert prompts[1] == "photo of a vase and a <a> armchair on the beach"
    assert prompts[6] == "watercolor painting of a <a> armchair and a vase in a forest"
    assert pair._prompts(["owl", "cat"], style="drawing")[0] == "drawing of an owl and a cat in a garden"


def test_what_cannot_be_composed_is_refused_before_anything_is_written(
    make: Callable[..., PairDemo], recognizer: Recognizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Backbone, "load", None)
    out = tmp_path / "out"
    name = next(iter(pocket.examples()))
    with pytest.raises(OptionError, match="1 examples were given. Give two, such as"):
        make_pair_demo([name], out=out)
    with pytest.raises(OptionError, match="are both a .* Choose examples of two categories"):
        make_pair_demo([name, name], out=out)
    with pytest.raises(OptionError, match="no example 'unicorn'"):
        make_pair_demo([name, "unicorn"], out=out)
    with pytest.raises(OptionError, match="count is 0"):
        make(count=0)
    with pytest.raises(OptionError, match="does not know the category 'vase'"):
        make_pair_demo(("bulldog", "jar"), out=out)
    (tmp_path / "recognizer.safetensors").unlink()
    with pytest.raises(OptionError, match="There is no recognizer .*recipe.recognizer"):
        make()
    assert not out.exists()


def test_the_default_examples_exist() -> None:
    assert {*pair.EXAMPLES, single.EXAMPLE} <= set(pocket.examples())
