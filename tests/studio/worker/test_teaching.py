import warnings
from pathlib import Path

import pytest
from PIL import Image

from conftest import write_pictures
from moongate.backbone import Backbone
from moongate.pocket import examples
from moongate.studio.drafts import Draft
from moongate.studio.teach import of_example
from moongate.studio.worker.bench import Bench, Setup
from moongate.studio.worker.teaching import bring_photos, look_at_photos, side_of, usual_steps
from moongate.training import method


@pytest.mark.parametrize("name", examples())
def test_every_shipped_example_makes_a_draft_that_can_be_taught(
    name: str, pocket_tokenizing: Backbone, tmp_path: Path
) -> None:
    source, settings, held_out = of_example(name)
    draft = Draft.create(tmp_path, name)
    draft.write(settings)
    bench = Bench(Setup(device="cpu"))
    assert bring_photos(bench, str(source), str(draft.teach)) == []
    for photo in held_out:
        bring_photos(bench, str(photo), str(draft.held_out), prefix="judge-")
    pictures = [file for file in source.iterdir() if file.suffix == ".webp"]
    assert len(draft.photos()) == len(pictures) + len(held_out) >= 5
    job = draft.job(name, model="pocket")
    assert job["concepts"][0]["category"] == examples()[name].category
    assert job["holdout"] == str(draft.held_out)
    pocket_tokenizing.check_token(job["concepts"][0]["token"])


@pytest.fixture(scope="module")
def pocket_tokenizing() -> Backbone:
    return Backbone.load("pocket", device="cpu")


def test_photos_of_one_name_from_two_folders_are_all_brought_with_their_own_captions(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for number, folder in enumerate(("10_my dog", "5_my dog")):
        write_pictures(tmp_path / "photos" / folder, count=2, seed=number)
        (tmp_path / "photos" / folder / "0.txt").write_text(f"caption {number}")
    draft = Draft.create(tmp_path, "dog")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bring_photos(Bench(Setup(device="cpu")), str(tmp_path / "photos"), str(draft.teach))
    captions = {photo.file.stem: photo.caption for photo in draft.photos()}
    assert {captions["0"], captions["0-2"]} == {"caption 0", "caption 1"}
    assert len(captions) == 4


def test_photos_of_one_name_to_learn_from_and_to_judge_have_their_own_remarks(tmp_path: Path) -> None:
    photos = [tmp_path / "teach" / "0.png", tmp_path / "held-out" / "0.png"]
    for seed, photo in enumerate(photos):
        write_pictures(photo.parent, count=1, seed=seed)
    with Image.open(photos[0]) as image:
        image.resize((20, 16)).save(photos[0])
    bench = Bench(Setup(device="cpu"))
    looks = look_at_photos(bench, list(map(str, photos)), [None, None], side_px=32, previews=str(tmp_path / "previews"))
    small = "teach/0.png is smaller than the 32 pixels that the model draws."
    assert [small in look["remarks"] for look in looks] == [True, False]
    assert not any("teach/0.png" in text for text in looks[1]["remarks"])


@pytest.mark.parametrize(("sample_size", "side_px"), [("8", 16), ("1e999", None), ('"?"', None)])
def test_the_side_of_a_model_is_read_from_its_configuration(
    sample_size: str, side_px: int | None, tmp_path: Path
) -> None:
    for part, content in (("unet", f'{{"sample_size": {sample_size}}}'), ("vae", '{"block_out_channels": [4, 4]}')):
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text(content)
    assert side_of(Bench(Setup(device="cpu")), str(tmp_path)) == side_px


def test_a_new_subject_is_taught_for_as_many_steps_as_suit_the_model(
    pocket_tokenizing: Backbone, tmp_path: Path
) -> None:
    settings = pocket_tokenizing.settings
    own = method.METHODS[settings.method or "custom-diffusion"]
    assert usual_steps(Bench(Setup(device="cpu")), "pocket") == method.usual_steps(settings, own) < 250
    for content, steps in (
        ('{"steps_scale": 0.1}', 25),
        ("{}", 250),
        ("[", 250),
        ("[]", 250),
        ('{"steps_scale": 1e308}', 250),
    ):
        (tmp_path / "moongate.json").write_text(content)
        assert usual_steps(Bench(Setup(device="cpu")), str(tmp_path)) == steps
    assert usual_steps(Bench(Setup(device="cpu")), "owner/a-model-of-a-hub") == 250
