from pathlib import Path

import pytest

from moongate import cli
from moongate.errors import OptionError
from moongate.preference import Study
from moongate.studio.places import Places
from moongate.studio.studies import folders_of_photos, folders_of_pictures, make_command
from studio_making import make_drawing


@pytest.fixture
def places(tmp_path: Path) -> Places:
    places = Places.open(tmp_path / "studio")
    for n, way in enumerate(("x/merge", "x/add", "y/merge")):
        for seed in range(2):
            make_drawing(places.gallery / way / f"{seed}.png", "a <bear> teddy bear", seed=seed, steps=n)
    make_drawing(places.photos / "bear" / "teach" / "0.png", "x", seed=9)
    return places


def test_folders_with_pictures_are_offered(places: Places) -> None:
    assert sorted(folders_of_pictures(places)) == ["x/add", "x/merge", "y/merge"]
    assert folders_of_photos(places) == ["bear/teach"]


def test_the_command_makes_the_study(places: Places) -> None:
    command = make_command(places, "My study", ["x/merge", "x/add"], words="<bear> teddy bear", photos="bear/teach")
    cli.main(list(command.words))
    study = Study.open(places.studies / "My-study")
    assert study.methods == ("merge", "add")
    assert [target.words for target in study.targets] == ["teddy bear"]
    assert len(study.keys) == 4
    with pytest.raises(OptionError, match="already a study"):
        make_command(places, "My study", ["x/merge", "x/add"])


def test_methods_of_one_name_are_told_apart(places: Places) -> None:
    words = make_command(places, "s", ["x/merge", "y/merge"]).words
    assert [word.partition("=")[0] for word in words[4::2]] == ["x-merge", "y-merge"]


def test_what_is_missing_is_named(places: Places) -> None:
    for message, arguments in (
        ("name is empty", {"name": " ", "methods": ["x/add", "x/merge"]}),
        ("Fewer than two", {"name": "s", "methods": ["x/add"]}),
        ("Give both or none", {"name": "s", "methods": ["x/add", "x/merge"], "words": "bear"}),
        ("is not in", {"name": "s", "methods": ["x/add", "../../.."]}),
    ):
        with pytest.raises(OptionError, match=message):
            make_command(places, **arguments)
