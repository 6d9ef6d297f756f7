import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image

from moongate.errors import MoongateWarning, OptionError, PictureError
from moongate.preference import PICTURES, Study
from moongate.preference.making import Subject, make_study, prompt_and_seed
from studying import make_picture, make_pictures

PROMPTS = ("photo of a <bear> teddy bear in the snow", "a <bear> on a sofa", "a house")
READ = ("photo of a teddy bear in the snow", "a teddy bear on a sofa", "a house")


@pytest.fixture
def methods(tmp_path: Path) -> dict[str, Path]:
    return {
        "ours": make_pictures(tmp_path / "ours", PROMPTS, seed=1, seeds=(0, 7)),
        "theirs": make_pictures(tmp_path / "theirs", PROMPTS[:2], seed=50_000, seeds=(0, 7)),
    }


@pytest.fixture
def bear(tmp_path: Path) -> Subject:
    for number in range(7):
        make_picture(tmp_path / "photos" / f"{number}.png", seed=900 + number)
    return Subject(words="<bear> teddy bear", photos=tmp_path / "photos")


def test_pictures_of_the_same_prompt_and_seed_are_compared(
    methods: dict[str, Path], bear: Subject, tmp_path: Path
) -> None:
    with pytest.warns(MoongateWarning, match="2 pictures have no partner"):
        study = make_study(tmp_path / "study", methods, [bear])
    assert sorted(item.prompt for item in study.items) == sorted(READ[:2] * 2)
    assert all(item.targets == (0,) for item in study.items)
    assert len(study.targets[0].photos) == 4
    assert Study.open(tmp_path / "study") == study


def test_the_copies_show_the_same_and_tell_nothing(methods: dict[str, Path], tmp_path: Path) -> None:
    with pytest.warns(MoongateWarning, match="no partner"):
        study = make_study(tmp_path / "study", methods)
    item = next(item for item in study.items if item.prompt == "a on a sofa")
    with (
        Image.open(tmp_path / "study" / PICTURES / item.pictures["ours"]) as copy,
        Image.open(methods["ours"] / "1-0.png") as own,
    ):
        assert copy.info == {}
        assert "moongate" in own.info
        assert copy.tobytes() == own.tobytes()
    assert "ours" not in "".join(path.name for path in (tmp_path / "study" / PICTURES).iterdir())


@pytest.mark.parametrize("prompt", ["<bear>", " "])
def test_a_picture_whose_prompt_has_no_words_is_named(prompt: str, tmp_path: Path) -> None:
    folders = {name: make_pictures(tmp_path / name, [prompt], seed=1) for name in ("ours", "theirs")}
    with pytest.raises(PictureError, match=r"The prompt '.*' of .*0-0.png has no words for raters to read"):
        make_study(tmp_path / "study", folders)
    assert not (tmp_path / "study").exists()


def test_without_subjects_the_second_question_is_not_asked(methods: dict[str, Path], tmp_path: Path) -> None:
    with pytest.warns(MoongateWarning, match="no partner"):
        assert make_study(tmp_path / "study", methods).questions == ("text",)


def test_a_prompt_shows_the_photos_of_the_subjects_it_names(bear: Subject, tmp_path: Path) -> None:
    prompts = ["a <bear> teddy bear and a <rex> dog", "a hotdog", "a Dog"]
    methods = {name: make_pictures(tmp_path / name, prompts, seed=seed) for name, seed in (("a", 1), ("b", 500))}
    make_picture(tmp_path / "dogs" / "0.png", seed=1)
    study = make_study(tmp_path / "study", methods, [bear, Subject(words="<rex> dog", photos=tmp_path / "dogs")])
    assert {item.prompt: item.targets for item in study.items} == {
        "a teddy bear and a dog": (0, 1),
        "a hotdog": (),
        "a Dog": (1,),
    }


def test_prompts_are_read_from_other_programs_too(tmp_path: Path) -> None:
    parameters = "a dog\nNegative prompt: blurred\nSteps: 20, Seed: 12, Size: 8x8"
    assert prompt_and_seed(make_picture(tmp_path / "x.png", seed=1, texts={"parameters": parameters})) == (
        "a dog",
        "12",
    )
    (tmp_path / "y.txt").write_text("a cat\n")
    assert prompt_and_seed(make_picture(tmp_path / "y.png", seed=1)) == ("a cat", "y")
    with pytest.raises(PictureError, match="Write its prompt into z.txt"):
        prompt_and_seed(make_picture(tmp_path / "z.png", seed=1))


def test_a_picture_that_says_it_is_huge_is_named_and_not_opened(tmp_path: Path) -> None:
    header = b"IHDR" + struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    chunks = [
        struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in (header, b"IDAT")
    ]
    (tmp_path / "huge.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    with pytest.raises(PictureError, match=r"huge.png is too large"):
        prompt_and_seed(tmp_path / "huge.png")


def test_overviews_are_no_pictures_of_a_method(methods: dict[str, Path], tmp_path: Path) -> None:
    make_picture(methods["ours"] / "contact-sheet-2.png", seed=1)
    with pytest.warns(MoongateWarning, match="no partner"):
        assert len(make_study(tmp_path / "study", methods).items) == 4


def test_what_cannot_be_compared_is_named_before_anything_is_written(methods: dict[str, Path], tmp_path: Path) -> None:
    def refused(match: str, chosen: dict[str, Path], *subjects: Subject) -> None:
        with pytest.raises(OptionError, match=match):
            make_study(tmp_path / "study", chosen, subjects)
        assert not (tmp_path / "study").exists()

    refused("1 methods are given", {"ours": methods["ours"]})
    refused("There is no folder of pictures", {**methods, "third": tmp_path / "nowhere"})
    refused("no word for what it is", methods, Subject(words="<bear>", photos=tmp_path))
    refused("There is no folder of photos", methods, Subject(words="bear", photos=tmp_path / "nowhere"))
    other = make_pictures(tmp_path / "other", ["something else"], seed=3)
    refused("No prompt was drawn with the same seed by two methods", {"ours": methods["ours"], "other": other})
    make_picture(other / "again.png", seed=9, texts={"moongate": '{"prompt": "something else", "seed": 0}'})
    refused("are both of 'something else'", {"ours": methods["ours"], "other": other})


def test_a_study_is_not_overwritten(methods: dict[str, Path], tmp_path: Path) -> None:
    with pytest.warns(MoongateWarning, match="no partner"):
        make_study(tmp_path / "study", methods)
    with pytest.raises(OptionError, match="holds a study already"):
        make_study(tmp_path / "study", methods)
