import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from torch import Tensor

from moongate.demo.recognizer import Recognizer
from moongate.errors import OptionError
from recipe import report as module
from recipe.corpus.catalog import CATALOG
from recipe.corpus.scenes import FILTERED_STYLES, STYLES
from recipe.report import CLASS_COUNTS, Content, ReportOptions, draw, make_prompts, psnr_db, report, shares_recognized

SHARES = ("single_object", "both_objects", "place", "style")
KEYS = {
    "autoencoder_psnr_db",
    *(f"{name}_recognized" for name in SHARES),
    *(f"{name}_recognized_on_{kind}_pictures" for name in SHARES for kind in ("real", "decoded")),
    "kid_x1000",
    "parameters",
    "shipped_bytes",
    "prompts",
    "steps",
}


# --- prompts ------------------------------------------------------------------------------------


def test_prompts_are_fixed_and_longer_lists_begin_with_shorter_ones() -> None:
    assert make_prompts(300) == make_prompts(300)
    assert make_prompts(300)[:64] == make_prompts(64)


def test_every_third_prompt_holds_two_different_objects() -> None:
    counts = [len(set(content.categories)) for content in make_prompts(400)]
    assert counts == ([1, 1, 2] * 134)[:400]


def test_prompts_cover_everything_and_ask_for_photos_only_where_a_model_was_seen() -> None:
    prompts = make_prompts(1000)
    assert {name for content in prompts for name in content.categories} == set(CATALOG)
    assert {content.style for content in prompts} == set(STYLES)
    assert len({content.place for content in prompts}) == CLASS_COUNTS[1]
    photos = [content for content in prompts if content.style == "photo"]
    photographed = {name for content in photos for name in content.categories}
    assert all(CATALOG[name]["models"] for name in photographed)
    assert "teddy bear" not in photographed, "its only model is held out"
    drawn = [content for content in prompts if content.style not in ("photo", *FILTERED_STYLES)]
    assert all(CATALOG[name]["drawings"] for content in drawn for name in content.categories)


def test_captions_follow_the_grammar_of_the_corpus() -> None:
    two = Content(categories=("elephant", "chair"), place="in a garden", style="photo")
    assert two.caption == "photo of an elephant and a chair in a garden"
    one = Content(categories=("sunglasses",), place="on an orange background", style="drawing")
    assert one.caption == "drawing of sunglasses on an orange background"


# --- recognition --------------------------------------------------------------------------------


def test_shares_are_split_by_the_number_of_objects() -> None:
    contents = [
        Content(categories=("cat",), place="at night", style="photo"),
        Content(categories=("dog",), place="at night", style="photo"),
        Content(categories=("cat", "dog"), place="in a room", style="drawing"),
        Content(categories=("cat", "chair"), place="in a room", style="pixel art"),
    ]
    # What a perfect classifier would say, with three mistakes.
    scores = torch.stack([scores_of(content) for content in contents])
    scores[1] = scores_of(Content(categories=("cat",), place="at night", style="photo"))
    scores[3] = scores_of(Content(categories=("cat", "chair"), place="at night", style="photo"))
    assert shares_recognized(scores, contents) == {
        "single_object_recognized": 0.5,
        "both_objects_recognized": 1.0,
        "place_recognized": 0.75,
        "style_recognized": 0.75,
    }


def scores_of(content: Content) -> Tensor:
    scores = torch.zeros(sum(CLASS_COUNTS))
    offsets = [0, CLASS_COUNTS[0], CLASS_COUNTS[0] + CLASS_COUNTS[1]]
    for offset, classes in zip(offsets, content.classes, strict=True):
        for number in classes:
            scores[offset + number] = 1
    return scores


# --- measures -----------------------------------------------------------------------------------


def test_psnr_of_a_known_error() -> None:
    reference = torch.zeros(2, 3, 4, 4)
    image = reference.clone()
    image[0] += 0.2  # 10 log10(4 / 0.04) = 20 dB
    image[1, :, :2] += 0.02  # half the pixels: 10 log10(4 / 0.0002) = 43.01 dB
    assert psnr_db(image, reference).tolist() == pytest.approx([20.0, 43.0103], abs=1e-3)
    levels = torch.tensor([[[[100.0]]], [[[110.0]]]]) / 127.5 - 1
    classic = 20 * np.log10(255 / 10)
    assert psnr_db(levels[:1], levels[1:]).item() == pytest.approx(classic, abs=1e-3)


# --- the report ---------------------------------------------------------------------------------


@pytest.fixture
def pipeline(tiny_folder: Path) -> StableDiffusionPipeline:
    return StableDiffusionPipeline.from_pretrained(tiny_folder)


def test_drawing_resumes_and_depends_on_prompt_and_seed_alone(
    pipeline: StableDiffusionPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captions = [content.caption for content in make_prompts(20)]
    first = draw(pipeline, captions[:16], steps=2, folder=tmp_path / "a")
    assert first.shape == (16, 64, 64, 3)
    assert first.dtype == np.uint8
    again = draw(pipeline, captions, steps=2, folder=tmp_path / "b")
    calls = []
    monkeypatch.setattr(type(pipeline), "__call__", counting(type(pipeline).__call__, calls))
    resumed = draw(pipeline, captions, steps=2, folder=tmp_path / "a")
    assert calls == [captions[16:]], "only the batch that was missing is drawn"
    np.testing.assert_array_equal(resumed, again)


def counting(function: Callable, calls: list[list[str]]) -> Callable:
    def counted(self: object, captions: list[str], **options: object) -> object:
        calls.append(captions)
        return function(self, captions, **options)

    return counted


@pytest.fixture
def fake_corpus(tmp_path: Path) -> Path:
    """Write 20 training and 12 held-out pictures of noise, a third of them of two objects."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    rng = np.random.default_rng(0)
    np.save(folder / "pictures.npy", rng.integers(0, 256, (32, 128, 128, 3), dtype=np.uint8))
    lines = []
    for index, content in enumerate(make_prompts(32)):
        phrase = "close up " if index % 5 == 0 else ""
        scene = {"caption": phrase + content.caption, "categories": content.categories}
        scene |= {"place": content.place, "style": content.style}
        lines.append(json.dumps(scene | {"split": "train" if index < 20 else "held out"}))
    (folder / "scenes.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture
def options(fake_corpus: Path, tiny_folder: Path, tmp_path: Path) -> ReportOptions:
    return ReportOptions(
        corpus=fake_corpus,
        weights=tiny_folder,
        out=tmp_path / "results",
        work=tmp_path / "work",
        prompts=64,
        steps=1,
        classifier_steps=1,
    )


def test_figures_are_flat_and_repeatable(
    options: ReportOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "lite0_features", lambda device: lambda images: images.mean((2, 3)))
    monkeypatch.setattr(module, "WIDTHS", (4, 4, 4, 4))
    figures = report(options)
    written = json.loads((options.out / "pocket.json").read_text())
    assert written == figures
    assert set(written) == KEYS
    assert all(isinstance(value, int | float) for value in written.values())
    files = [path for path in options.weights.rglob("*") if path.is_file()]
    assert written["shipped_bytes"] == sum(path.stat().st_size for path in files)
    with Image.open(options.out / "pocket.png") as sheet:
        assert sheet.width > 8 * 64
        assert sheet.height > 8 * 64
    assert report(replace(options, ship=tmp_path / "shipped")) == figures
    shipped = Recognizer.load(tmp_path / "shipped" / "model.safetensors")
    assert (shipped.classes, shipped.widths) == (module.CLASSES, (4, 4, 4, 4))


def test_the_sheet_alone_needs_neither_corpus_nor_features(
    options: ReportOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "lite0_features", lambda device: pytest.fail("not needed"))
    alone = ReportOptions(
        corpus=tmp_path / "nowhere",
        weights=options.weights,
        out=options.out,
        work=options.work,
        steps=1,
        sheet_only=True,
    )
    assert report(alone) == {}
    assert (options.out / "pocket.png").exists()
    assert not (options.out / "pocket.json").exists()


def test_the_packages_recognizer_judges_unless_one_is_trained(
    options: ReportOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(module, "lite0_features", lambda device: lambda images: images.mean((2, 3)))
    monkeypatch.setattr(module, "train_recognizer", lambda corpus, options: pytest.fail("not asked for"))
    monkeypatch.setattr(module, "measure", lambda backbone, recognizer, *_, **__: seen.append(recognizer) or {})
    report(replace(options, classifier_steps=0))
    shipped = Recognizer.load()
    assert all(map(torch.equal, seen[0].state_dict().values(), shipped.state_dict().values()))


def test_too_few_prompts_for_the_sheet_are_refused() -> None:
    with pytest.raises(OptionError, match="prompts is 10; give at least 64"):
        ReportOptions(prompts=10)


def test_shipping_what_was_not_trained_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="give classifier_steps"):
        ReportOptions(ship=tmp_path)
