import json
import re
from pathlib import Path

import pytest

from moongate.errors import OptionError
from moongate.evaluation import PROMPT_SETS, custom_concept_101, read_prompts
from moongate.evaluation.prompts import filled, without_tokens

KINDS = {"background", "insertion", "style", "property"}


@pytest.mark.parametrize("name", PROMPT_SETS)
def test_a_set_has_twenty_prompts_or_twelve_for_a_pair_of_four_kinds(name: str) -> None:
    pair = name.endswith("pair")
    assert set(PROMPT_SETS[name]) == KINDS
    assert {len(prompts) for prompts in PROMPT_SETS[name].values()} == {3 if pair else 5}
    prompts = read_prompts(name)
    assert len(set(prompts)) == (12 if pair else 20)
    for prompt in prompts:
        assert re.findall(r"\{\d?\}", prompt) == (["{0}", "{1}"] if pair else ["{}"])


def test_places_are_filled_and_missing_things_named() -> None:
    assert filled("a {0} on a {1}", ["<cat> cat", "<chair> chair"]) == "a <cat> cat on a <chair> chair"
    assert filled("{} in {braces}", ["<cat> cat"]) == "<cat> cat in {braces}"
    with pytest.raises(OptionError, match="a place for thing 2, but only 1 is given"):
        filled("a {0} on a {1}", ["<cat> cat"])


def test_tokens_are_taken_out_of_what_networks_read() -> None:
    things = {"<bear>": "teddy bear", "<chair>": "chair"}
    assert without_tokens("a <bear> teddy bear on a <chair> chair", things) == "a teddy bear on a chair"
    assert without_tokens("a <bear> in red", things) == "a teddy bear in red"
    assert without_tokens("a dog", things) == "a dog"


def test_prompts_come_from_a_file_too(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("a {}\n\n  {} at night \n")
    assert read_prompts(str(tmp_path / "mine.txt")) == ["a {}", "{} at night"]
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(OptionError, match="holds no prompt"):
        read_prompts(str(tmp_path / "empty.txt"))
    with pytest.raises(OptionError, match="'nowhere' is neither a set of prompts .object, .* nor a file"):
        read_prompts("nowhere")


@pytest.fixture
def benchmark(tmp_path: Path) -> Path:
    """The layout of customconcept101/: two listings and the prompts that they name."""

    def thing(name: str, token: str) -> dict[str, str]:
        return {
            "instance_prompt": f"photo of a {token} {name}",
            "class_prompt": name,
            "instance_data_dir": f"./benchmark_dataset/pet_{name}",
            "class_data_dir": f"./regularization/{name}",
            "prompt_filename": "prompts/live_objects.txt",
        }

    pair = [thing("cat", "<new1>"), thing("dog", "<new2>"), {"prompt_filename_compose": "prompts/pet_pet.txt"}]
    (tmp_path / "dataset.json").write_text(json.dumps([thing("cat", "<new1>")]))
    (tmp_path / "dataset_multiconcept.json").write_text(json.dumps([pair]))
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "live_objects.txt").write_text("{} in snow\n{} asleep\n")
    (tmp_path / "prompts" / "pet_pet.txt").write_text("{0} near {1}\n{0} behind {0}\n")
    return tmp_path


def test_the_original_benchmark_is_read(benchmark: Path) -> None:
    (cat,) = custom_concept_101(benchmark)
    assert (cat.categories, cat.tokens) == (("cat",), ("<new1>",))
    assert cat.pictures == (benchmark / "benchmark_dataset" / "pet_cat",)
    assert cat.prompts == ("{} in snow", "{} asleep")
    (pair,) = custom_concept_101(benchmark, listing="dataset_multiconcept.json")
    assert (pair.categories, pair.tokens) == (("cat", "dog"), ("<new1>", "<new2>"))
    assert pair.prompts == ("{0} near {1}", "{0} behind {1}"), "a prompt that names the first thing twice is mended"


def test_a_benchmark_that_is_not_whole_says_what_is_missing(benchmark: Path) -> None:
    (benchmark / "prompts" / "live_objects.txt").unlink()
    with pytest.raises(OptionError, match=r"file of prompts .*live_objects.txt is missing"):
        custom_concept_101(benchmark)
    (benchmark / "dataset.json").write_text('[{"name": "cat"}]')
    with pytest.raises(OptionError, match="is not as the benchmark lays it out"):
        custom_concept_101(benchmark)
    with pytest.raises(OptionError, match="holds no dataset.json"):
        custom_concept_101(benchmark / "prompts")
