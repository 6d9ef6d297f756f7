import json
from dataclasses import replace
from pathlib import Path

import pytest

from moongate.errors import OptionError
from moongate.studio.composition import Composition, filled, joint_job, templates
from moongate.studio.drafts import Draft
from moongate.studio.places import Places
from moongate.studio.shelf import cards
from studio_making import make_concept, make_drawing


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places.open(tmp_path / "studio")


@pytest.fixture
def pair(places: Places) -> Composition:
    bear, dog = places.concepts / "bear.safetensors", places.concepts / "dog.safetensors"
    make_concept(bear)
    make_concept(dog, token="<rex>", category="dog", value=2.0)
    chosen = Composition(prompt="a {0} and a {1}", seed=3, count=2, ways=("merge", "add")).added(bear).added(dog)
    return chosen.strengthened(dog, 0.8)


WORDS = ["<bear> teddy bear", "<rex> dog"]


def test_what_is_chosen_is_read_as_it_was_written(places: Places, pair: Composition) -> None:
    pair = replace(pair, regions={"<rex> dog": (0.5, 0.0, 1.0, 1.0)}, drawn="x")
    pair.write(places)
    assert Composition.read(places) == pair


def test_files_that_are_gone_or_outside_are_left_out(places: Places, pair: Composition, tmp_path: Path) -> None:
    make_concept(tmp_path / "outside.safetensors")
    pair.added(tmp_path / "outside.safetensors").write(places)
    (places.concepts / "bear.safetensors").unlink()
    assert [concept.file.stem for concept in Composition.read(places).concepts] == ["dog"]


WITHOUT_END = """{"concepts": [], "prompt": "", "seed": 1e999, "count": 1, "steps": 1, "ways": [], "regions": {},
"drawn": ""}"""


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"concepts": 3}', "[" * 1000, WITHOUT_END])
def test_a_damaged_file_chooses_nothing(content: str, places: Places) -> None:
    (places.root / "composition.json").write_text(content)
    assert Composition.read(places) == Composition()


def test_numbers_beyond_their_range_are_brought_into_it(places: Places, pair: Composition) -> None:
    pair.write(places)
    facts = json.loads((places.root / "composition.json").read_text())
    facts["concepts"][0]["strength"] = 1e9
    facts["concepts"][1]["strength"] = float("nan")
    facts["regions"] = {"<rex> dog": [-1, 0, 7, 1]}
    (places.root / "composition.json").write_text(json.dumps(facts))
    read = Composition.read(places)
    assert [concept.strength for concept in read.concepts] == [1.5, 1.0]
    assert read.regions == {"<rex> dog": (0.0, 0.0, 1.0, 1.0)}


def test_a_concept_is_chosen_once_and_removed(pair: Composition) -> None:
    again = pair.added(pair.concepts[0].file)
    assert again == pair
    assert [concept.file.stem for concept in pair.removed(pair.concepts[0].file).concepts] == ["dog"]


def test_each_way_draws_the_same_prompt_and_seeds_into_a_folder_of_its_own(places: Places, pair: Composition) -> None:
    pair = replace(pair, ways=("merge", "add", "joint"), regions={"<rex> dog": (0.5, 0, 1, 1), "a cat": (0, 0, 1, 1)})
    folder, found = pair.drawing(WORDS, places)
    assert list(found) == ["merge", "add", "joint"]
    lines = {way: command.line for way, command in found.items()}
    for way, line in lines.items():
        assert "'a <bear> teddy bear and a <rex> dog'" in line
        assert "--count 2 --seed 3" in line
        assert line.endswith(f"--out {folder / way}")
        assert "'--region=<rex> dog=0.5,0,1,1'" in line
        assert "a cat" not in line
    assert "--together merge" in lines["merge"]
    assert "--together add" in lines["add"]
    assert "dog.safetensors:0.8" in lines["add"]
    assert f"--concept {places.concepts / 'joint-bear-dog.safetensors'}" in lines["joint"]


def test_one_concept_is_drawn_alone(places: Places, pair: Composition) -> None:
    one = replace(pair.removed(pair.concepts[1].file), prompt="photo of a {}")
    _, found = one.drawing(WORDS[:1], places)
    assert list(found) == ["alone"]
    assert "'photo of a <bear> teddy bear'" in found["alone"].line


def test_what_cannot_be_drawn_is_named(places: Places, pair: Composition) -> None:
    with pytest.raises(OptionError, match="No concept is chosen"):
        Composition(prompt="a").drawing([], places)
    with pytest.raises(OptionError, match="No way is chosen"):
        replace(pair, ways=()).drawing(WORDS, places)
    with pytest.raises(OptionError, match="more subjects than the 2"):
        replace(pair, prompt="a {2}").drawing(WORDS, places)


def test_places_in_a_prompt_take_the_words_of_subjects() -> None:
    assert filled("photo of a {} and an {1}", ["owl", "<s> ship"]) == "photo of an owl and a <s> ship"
    assert filled("a {} and a {1}", WORDS) == "a <bear> teddy bear and a <rex> dog"
    assert filled("a dog", WORDS) == "a dog"


def test_templates_fit_the_number_of_subjects() -> None:
    assert all("{1}" in filled for filled in templates(2))
    assert all("{1}" not in template for template in templates(1))
    assert len(templates(1)) == 40


def test_subjects_are_taught_jointly_from_the_photos_of_the_page_teach(places: Places, pair: Composition) -> None:
    for name, token, category in (("b", "<bear>", "teddy bear"), ("d", "<rex>", "dog")):
        draft = Draft.create(places.photos, name)
        make_drawing(draft.teach / "0.png", "x")
        draft.choose(token=token, category=category)
    job = joint_job(pair, cards(places), places, model="pocket")
    assert job["name"] == "joint-bear-dog"
    assert sorted(job["concepts"], key=str) == [
        {"pictures": str(places.photos / "b" / "teach"), "category": "teddy bear", "token": "<bear>"},
        {"pictures": str(places.photos / "d" / "teach"), "category": "dog", "token": "<rex>"},
    ]
    assert job["model"] == "tiny"
    assert "steps" not in job  # so that as many are taken as suit the model


def test_subjects_without_photos_are_named(places: Places, pair: Composition) -> None:
    with pytest.raises(OptionError, match="There are no photos of <"):
        joint_job(pair, cards(places), places, model="pocket")
