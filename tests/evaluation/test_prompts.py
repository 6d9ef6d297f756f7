import re
from pathlib import Path

import pytest

from moongate.backbone import Backbone, Settings
from moongate.errors import OptionError
from moongate.evaluation import PROMPT_SETS, default_prompts, read_prompts
from moongate.evaluation.prompts import filled, prompt_lines

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


def test_places_are_filled_and_missing_subjects_named() -> None:
    assert filled("a {0} on a {1}", ["<cat> cat", "<chair> chair"]) == "a <cat> cat on a <chair> chair"
    assert filled("{} in {braces}", ["<cat> cat"]) == "<cat> cat in {braces}"
    with pytest.raises(OptionError, match="a place for subject 2, but only 1 is given"):
        filled("a {0} on a {1}", ["<cat> cat"])


def test_prompts_come_from_a_file_too(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("a {}\n\n  {} at night \n")
    assert read_prompts(str(tmp_path / "mine.txt")) == ["a {}", "{} at night"]
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(OptionError, match="holds no prompt"):
        read_prompts(str(tmp_path / "empty.txt"))
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 with {}")
    with pytest.raises(OptionError, match=r"latin.txt cannot be read: it is not text in UTF-8 .* at byte 3"):
        read_prompts(str(tmp_path / "latin.txt"))
    with pytest.raises(OptionError, match="'nowhere' is neither a set of prompts .object, .* nor a file"):
        read_prompts("nowhere")
    with pytest.raises(OptionError, match=r"gone.txt cannot be read: No such file .* Check the path"):
        prompt_lines(tmp_path / "gone.txt")


def test_the_default_set_is_that_of_the_model_and_the_number_of_subjects(
    tiny: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert default_prompts(tiny, 1) == read_prompts("object")
    assert default_prompts(tiny, 2) == read_prompts("pair")
    monkeypatch.setattr(tiny, "settings", Settings(prompt_sets=("pocket", "pocket-pair")))
    assert default_prompts(tiny, 1) == read_prompts("pocket")
    assert default_prompts(tiny, 3) == read_prompts("pocket-pair")
    with pytest.raises(OptionError, match="Without a concept there is no default set"):
        default_prompts(tiny, 0)
