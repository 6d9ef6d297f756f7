import json
from pathlib import Path

import pytest

from moongate.errors import OptionError
from moongate.evaluation import read_protocol


@pytest.fixture
def benchmark(tmp_path: Path) -> Path:
    """The layout of customconcept101/: two listings and the prompts that they name."""

    def subject(name: str, category: str, token: str = "<new1>") -> dict[str, str]:
        return {
            "instance_prompt": f"photo of a {token} {category}",
            "class_prompt": category,
            "instance_data_dir": f"./benchmark_dataset/{name}",
            "class_data_dir": f"./regularization/{name}",
            "prompt_filename": f"prompts/{category}.txt",
        }

    cats = [subject("pet_cat1", "cat"), subject("pet_cat2", "cat")]

    def pair(cat: str, other: str, category: str, prompts: str) -> list[dict[str, str]]:
        subjects = [subject(cat, "cat"), subject(other, category, "<new2>")]
        return [*subjects, {"prompt_filename_compose": f"prompts/{prompts}.txt"}]

    pairs = [
        pair("pet_cat1", "pet_dog1", "dog", "pair"),
        pair("pet_cat2", "chair1", "chair", "pair"),
        pair("pet_cat2", "chair2", "chair", "two"),
    ]
    (tmp_path / "dataset.json").write_text(json.dumps([*cats, subject("pet_dog1", "dog")]))
    (tmp_path / "dataset_multiconcept.json").write_text(json.dumps(pairs))
    (tmp_path / "prompts").mkdir()
    for name, text in {
        "cat": "{} in snow\n\n{} asleep\n",
        "dog": "{} in snow\n",
        "pair": "{0} near {1}\n{0} behind {0}\n",
        "two": "{1} on {0}\n",
    }.items():
        (tmp_path / "prompts" / f"{name}.txt").write_text(text)
    return tmp_path


def test_one_subject_gets_the_prompts_of_its_category_and_the_pictures_of_its_only_entry(benchmark: Path) -> None:
    dog = read_protocol(f"customconcept101:{benchmark}", ["dog"])
    assert dog.prompts == ("{} in snow",)
    assert dog.pictures == (benchmark / "benchmark_dataset" / "pet_dog1",)


def test_pictures_come_from_an_entry_that_is_named_where_several_fit(benchmark: Path) -> None:
    cats = read_protocol(f"customconcept101:{benchmark}", ["cat"])
    assert (cats.prompts, cats.pictures) == (("{} in snow", "{} asleep"), ())
    cat = read_protocol(f"customconcept101:{benchmark}#pet_cat2", ["cat"])
    assert cat.pictures == (benchmark / "benchmark_dataset" / "pet_cat2",)


def test_a_pair_follows_the_order_of_the_concept(benchmark: Path) -> None:
    pictures = tuple(benchmark / "benchmark_dataset" / name for name in ("pet_cat1", "pet_dog1"))
    pair = read_protocol(f"customconcept101:{benchmark}", ["cat", "dog"])
    assert pair.prompts == ("{0} near {1}", "{0} behind {1}"), "a prompt that names the first twice is completed"
    assert pair.pictures == pictures
    turned = read_protocol(f"customconcept101:{benchmark}", ["dog", "cat"])
    assert turned.prompts == ("{1} near {0}", "{1} behind {0}")
    assert turned.pictures == pictures[::-1]


def test_entries_with_different_prompts_must_be_chosen_from(benchmark: Path) -> None:
    with pytest.raises(OptionError, match=r"has several sets of prompts for cat and chair.*#pet_cat2\+chair1"):
        read_protocol(f"customconcept101:{benchmark}", ["cat", "chair"])
    assert read_protocol(f"customconcept101:{benchmark}#pet_cat2+chair2", ["cat", "chair"]).prompts == ("{1} on {0}",)
    with pytest.raises(OptionError, match=r"no entry 'pet_cat9' for cat.*Known: pet_cat1; pet_cat2"):
        read_protocol(f"customconcept101:{benchmark}#pet_cat9", ["cat"])


def test_what_the_benchmark_does_not_have_is_said(benchmark: Path) -> None:
    protocol = f"customconcept101:{benchmark}"
    for choice in ("dreambench:here", "customconcept101", "customconcept101:"):
        with pytest.raises(OptionError, match="Unknown protocol .* Write customconcept101:FOLDER"):
            read_protocol(choice, ["cat"])
    with pytest.raises(OptionError, match="has no entry for owl. It has: cat; dog"):
        read_protocol(protocol, ["owl"])
    with pytest.raises(OptionError, match="one subject or two, not for 3"):
        read_protocol(protocol, ["cat", "dog", "chair"])
    (benchmark / "prompts" / "dog.txt").unlink()
    with pytest.raises(OptionError, match=r"file of prompts .*dog.txt is missing"):
        read_protocol(protocol, ["dog"])
    (benchmark / "dataset.json").write_text('[{"class_prompt": "cat"}]')
    with pytest.raises(OptionError, match="does not have the layout of CustomConcept101"):
        read_protocol(protocol, ["cat"])
    with pytest.raises(OptionError, match="holds no dataset.json"):
        read_protocol(f"{protocol}/prompts", ["cat"])
