from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from conftest import write_pictures
from moongate.backbone import Backbone, Settings
from moongate.data import PRESETS
from moongate.errors import BackboneError, CollectionError, MoongateError, MoongateWarning, OptionError
from moongate.evaluation.networks.clip import Clip
from moongate.regularization import CHOICES, RegularizationOptions, choose
from moongate.regularization.collection import Collection
from moongate.regularization.sources import Skipped, read_source
from moongate.sampling import sample
from moongate.training.method import METHODS


@pytest.fixture
def captioned(tmp_path: Path) -> Path:
    """Four pictures, two of them of a bear by their captions."""
    write_pictures(tmp_path / "captioned", count=4, seed=0)
    for number, caption in enumerate(("photo of a bear", "a red chair", "a bear on the beach", "a cat")):
        (tmp_path / "captioned" / f"{number}.txt").write_text(caption)
    return tmp_path / "captioned"


@pytest.fixture
def collection(tiny: Backbone, captioned: Path, tmp_path: Path) -> str:
    place, skipped = str(tmp_path / "collection"), Skipped()
    Collection.index(read_source(str(captioned), skipped), Clip.of_backbone(tiny), place=place, skipped=skipped)
    return place


def test_auto_is_what_method_collection_and_model_say_in_this_order(
    tiny: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    auto, ours, dreambooth = RegularizationOptions(), METHODS["custom-diffusion"], METHODS["dreambooth"]
    with_collection = replace(auto, collection="somewhere")
    assert auto.resolved(tiny) == auto.resolved(tiny, ours) == "generated"
    monkeypatch.setattr(tiny, "settings", Settings(regularization="pool"))
    assert auto.resolved(tiny, ours) == "pool"
    assert auto.resolved(tiny, dreambooth) == "generated"
    assert with_collection.resolved(tiny, ours) == "retrieved"
    assert with_collection.resolved(tiny, dreambooth) == "generated"
    assert auto.resolved(tiny, METHODS["textual-inversion"]) == "none"
    assert replace(auto, choice="none").resolved(tiny, ours) == "none"
    monkeypatch.setattr(tiny, "settings", Settings(regularization="laion"))
    with pytest.raises(BackboneError, match="names the regularization 'laion'. Known: retrieved, pool"):
        auto.resolved(tiny)


def test_generated_pictures_are_drawn_once_from_the_prompt_of_the_preset(
    tiny: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, progress = RegularizationOptions(choice="generated", count=2), []
    chosen = choose(tiny, "bear", folder=tmp_path, options=options, on_progress=lambda *state: progress.append(state))
    assert chosen.source == "generated"
    assert chosen.pictures is not None
    assert chosen.pictures.captions == ("photo of a bear",) * 2
    assert progress == [("Generating", 1, 2), ("Generating", 2, 2)]
    for seed, picture in enumerate(chosen.pictures.pictures):
        (drawn,) = sample(tiny, ["photo of a bear"], seeds=[seed])
        np.testing.assert_array_equal(picture, drawn.image)
    with pytest.warns(MoongateWarning, match="longer than the text encoder reads"):
        style = choose(tiny, "bear", folder=tmp_path, options=options, preset=PRESETS["style"]).pictures
    assert style is not None
    assert style.captions == ("painting in the style of bear",) * 2
    monkeypatch.setattr("moongate.sampling.sample", None)
    again = choose(tiny, "bear", folder=tmp_path, options=options).pictures
    assert again is not None
    assert again.hash == chosen.pictures.hash


def test_retrieved_pictures_come_from_the_collection_once_and_with_notes(
    tiny: Backbone, collection: str, tmp_path: Path
) -> None:
    options = RegularizationOptions(collection=collection, threshold=-1, count=3)
    chosen = choose(tiny, "bear", folder=tmp_path / "run", options=options)
    assert chosen.source == "retrieved"
    assert chosen.pictures is not None
    assert chosen.pictures.captions[0] == "photo of a bear"
    assert len(chosen.pictures.pictures) == 3
    assert {picture.shape for picture in chosen.pictures.pictures} == {(64, 80, 3)}, "shrunk to the model's side"
    assert chosen.notes[-1].startswith("Retrieved 3 pictures with similarities from 1.000")
    assert choose(tiny, "bear", folder=tmp_path / "run", options=options).notes == ()
    near = choose(tiny, "bear", folder=tmp_path / "near", options=replace(options, threshold=0.99999)).pictures
    assert near is not None
    assert near.captions == ("photo of a bear",), "the threshold is that of the options"


def test_pictures_are_retrieved_again_from_a_collection_that_has_grown_unless_a_run_continues(
    tiny: Backbone, captioned: Path, collection: str, tmp_path: Path
) -> None:
    options = RegularizationOptions(collection=collection, threshold=-1, count=9)

    def retrieved(*, resumes: bool = False) -> int:
        found = choose(tiny, "bear", folder=tmp_path / "run", options=options, resumes=resumes).pictures
        assert found is not None
        return len(found.pictures)

    assert retrieved() == 4
    write_pictures(tmp_path / "more", count=2, seed=1)
    for number in range(2):
        (tmp_path / "more" / f"{number}.txt").write_text(f"photo of {number} bears")
    more = read_source(str(tmp_path / "more"), Skipped())
    Collection.index(more, Clip.of_backbone(tiny), place=collection, skipped=Skipped())
    assert retrieved(resumes=True) == 4
    assert retrieved() == 6


def test_the_pool_gives_pictures_whose_captions_name_the_category(
    tiny: Backbone, captioned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moongate.pocket.pool_folder", lambda: captioned)
    chosen = choose(tiny, "bear", folder=tmp_path, options=RegularizationOptions(choice="pool"))
    assert chosen.pictures is not None
    assert chosen.pictures.captions == ("photo of a bear", "a bear on the beach")
    # A model whose default is the pool can retrieve from it without a collection.
    monkeypatch.setattr(tiny, "settings", Settings(regularization="pool", retrieval_threshold=-1))
    chosen = choose(tiny, "bear", folder=tmp_path, options=RegularizationOptions(choice="retrieved", count=1))
    assert chosen.pictures is not None
    assert chosen.pictures.captions == ("photo of a bear",)


def test_a_folder_is_taken_whole_and_none_gives_nothing(tiny: Backbone, captioned: Path, tmp_path: Path) -> None:
    chosen = choose(tiny, "bear", folder=tmp_path, options=RegularizationOptions(choice=str(captioned), count=3))
    assert chosen.pictures is not None
    assert (chosen.source, len(chosen.pictures.pictures)) == (str(captioned), 3)
    assert choose(tiny, "bear", folder=tmp_path, options=RegularizationOptions(choice="none")).pictures is None


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"count": 0}, OptionError, "regularization-count is 0"),
        ({"choice": "nowhere"}, OptionError, f"no picture or folder nowhere .* Give one, or {', '.join(CHOICES)}"),
        ({"choice": ""}, OptionError, "no picture or folder '' to regularize with"),
        ({"choice": "retrieved"}, CollectionError, "no collection to retrieve from"),
        ({"choice": "pool", "threshold": 0.5}, OptionError, r"threshold 0.5 would be ignored.*\(pool\)"),
        ({"choice": "generated", "collection": "x"}, OptionError, "collection x would be ignored"),
    ],
)
def test_an_option_that_does_not_fit_is_named(
    options: dict, error: type[MoongateError], message: str, tiny: Backbone, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        choose(tiny, "bear", folder=tmp_path, options=RegularizationOptions(**options))
