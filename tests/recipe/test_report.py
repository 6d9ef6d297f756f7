import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from moongate import sampling
from moongate.backbone import Backbone
from moongate.demo.recognizer import Recognizer
from moongate.errors import BackboneError, CorpusError, OptionError
from recipe import report as module
from recipe.corpus.catalog import CATALOG
from recipe.corpus.scenes import FILTERED_STYLES, STYLES
from recipe.recognizer import CLASSES
from recipe.report import ReportOptions, draw, make_prompts, psnr_db, report

pytestmark = pytest.mark.filterwarnings("ignore:The prompt .* is longer:moongate.errors.MoongateWarning")
"""The tiny text encoder reads less than the corpus' prompts say."""

SHARES = ("single_object", "both_objects", "place", "style")
ENDINGS = ("", "_at_guidance_6", "_on_real_pictures", "_on_decoded_pictures")
KEYS = {
    "autoencoder_psnr_db",
    *(f"{name}_recognized{ending}" for name in SHARES for ending in ENDINGS),
    "kid_x1000",
    "kid_x1000_at_guidance_6",
    "guidance",
    "parameters",
    "pictures_seen",
    "shipped_bytes",
    "prompts",
    "prompts_at_guidance_6",
    "steps",
}


# --- prompts ----------------------------------------------------------------------------------------------------------


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
    assert {content.place for content in prompts} == set(CLASSES.places)
    photos = [content for content in prompts if content.style == "photo"]
    photographed = {name for content in photos for name in content.categories}
    assert all(CATALOG[name]["models"] for name in photographed)
    assert "teddy bear" not in photographed, "its only model is held out"
    drawn = [content for content in prompts if content.style not in ("photo", *FILTERED_STYLES)]
    assert all(CATALOG[name]["drawings"] for content in drawn for name in content.categories)


# --- measures ---------------------------------------------------------------------------------------------------------


def test_psnr_of_a_known_error() -> None:
    reference = torch.zeros(2, 3, 4, 4)
    image = reference.clone()
    image[0] += 0.2  # 10 log10(4 / 0.04) = 20 dB
    image[1, :, :2] += 0.02  # half the pixels: 10 log10(4 / 0.0002) = 43.01 dB
    assert psnr_db(image, reference).tolist() == pytest.approx([20.0, 43.0103], abs=1e-3)
    levels = torch.tensor([[[[100.0]]], [[[110.0]]]]) / 127.5 - 1
    classic = 20 * np.log10(255 / 10)
    assert psnr_db(levels[:1], levels[1:]).item() == pytest.approx(classic, abs=1e-3)


# --- the report -------------------------------------------------------------------------------------------------------


@pytest.fixture
def options(noise_corpus: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ReportOptions:
    """Options for one step with the tiny backbone, a random recognizer and features that need no library."""
    torch.manual_seed(0)
    recognizer = Recognizer(CLASSES, (4, 4, 4)).eval().requires_grad_(False)
    monkeypatch.setattr(module.Recognizer, "load", lambda: recognizer)
    monkeypatch.setattr(module, "lite0_features", lambda device: lambda images: images.mean((2, 3)))
    weights = shutil.copytree(tiny_folder, tmp_path / "model")
    (weights / "training.json").write_text('{"pictures_seen": 42}')
    return ReportOptions(
        corpus=noise_corpus,
        weights=weights,
        out=tmp_path / "results",
        work=tmp_path / "work",
        prompts=66,
        paper_prompts=64,
        steps=1,
    )


@pytest.fixture
def drawn_prompts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The prompts that are drawn from now on."""
    prompts: list[str] = []
    sample = sampling.sample

    def counted(backbone: Backbone, new: list[str], **options: object) -> object:
        prompts.extend(new)
        return sample(backbone, new, **options)

    monkeypatch.setattr(sampling, "sample", counted)
    return prompts


def test_figures_are_flat_and_a_second_run_draws_nothing(options: ReportOptions, drawn_prompts: list[str]) -> None:
    figures = report(options)
    written = json.loads((options.out / "pocket.json").read_text())
    assert written == figures
    assert set(written) == KEYS
    assert all(isinstance(value, int | float) for value in written.values())
    assert (written["pictures_seen"], written["guidance"], written["prompts"]) == (42, 6, 66)
    files = [path for path in options.weights.rglob("*") if path.is_file()]
    assert written["shipped_bytes"] == sum(path.stat().st_size for path in files)
    with Image.open(options.out / "pocket.png") as sheet:
        assert sheet.width > 8 * 64
        assert sheet.height > 8 * 64
    assert len(drawn_prompts) == 66  # the model names no guidance of its own, so that both drawings are the same
    assert report(options) == figures
    assert len(drawn_prompts) == 66


def test_the_models_own_guidance_is_measured_and_the_papers_beside_it(
    options: ReportOptions, drawn_prompts: list[str]
) -> None:
    (options.weights / "moongate.json").write_text('{"guidance": 2}')
    figures = report(options)
    assert figures["guidance"] == 2
    assert len(drawn_prompts) == 66 + 64
    assert figures["prompts_at_guidance_6"] == 64
    assert figures["kid_x1000"] != figures["kid_x1000_at_guidance_6"]


def test_drawing_continues_and_depends_on_prompt_and_seed_alone(
    options: ReportOptions, drawn_prompts: list[str], tmp_path: Path
) -> None:
    backbone, prompts = Backbone.load(options.weights, device="cpu"), make_prompts(20)
    first = draw(backbone, prompts[:16], guidance=3, options=options)
    assert first.shape == (16, 64, 64, 3)
    assert first.dtype == np.uint8
    drawn_prompts.clear()
    continued = draw(backbone, prompts, guidance=3, options=options)
    assert drawn_prompts == [content.caption for content in prompts[16:]]
    again = draw(backbone, prompts, guidance=3, options=replace(options, work=tmp_path / "elsewhere"))
    np.testing.assert_array_equal(continued, again)


def test_the_sheet_alone_needs_neither_corpus_nor_features(
    options: ReportOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "lite0_features", lambda device: pytest.fail("not needed"))
    assert report(replace(options, corpus=tmp_path / "nowhere", sheet_only=True)) == {}
    assert (options.out / "pocket.png").exists()
    assert not (options.out / "pocket.json").exists()


def test_the_naming_sheet_is_shuffled_and_its_key_names_every_picture(options: ReportOptions, tmp_path: Path) -> None:
    report(replace(options, sheet_only=True, naming=tmp_path / "naming"))
    key = json.loads((tmp_path / "naming" / "key.json").read_text())
    captions = [content.caption for content in make_prompts(64)]
    assert list(key) == [str(position) for position in range(1, 65)]
    assert sorted(key.values()) == sorted(captions)
    assert list(key.values()) != captions
    with Image.open(tmp_path / "naming" / "unlabeled.png") as sheet:
        assert sheet.width > 8 * 64


def test_bad_input_is_refused_before_anything_is_drawn(
    options: ReportOptions, drawn_prompts: list[str], tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match="prompts is 10; give at least 64"):
        ReportOptions(prompts=10)
    with pytest.raises(CorpusError, match=r"has no scenes\.jsonl"):
        report(replace(options, corpus=tmp_path / "nowhere"))
    (tmp_path / "file").write_text("")
    with pytest.raises(OptionError, match="is not a folder that you may write into"):
        report(replace(options, out=tmp_path / "file"))
    (options.weights / "training.json").unlink()
    with pytest.raises(BackboneError, match=r"no training\.json.*pictures_seen"):
        report(options)
    assert not drawn_prompts
