import pytest

from moongate.concept import SubjectRecord
from moongate.data.captions import PRESETS, Preset, photo_of, with_article, without_tokens
from moongate.evaluation.prompts import filled


def test_the_article_fits_the_word() -> None:
    assert photo_of("armchair") == "photo of an armchair"
    assert photo_of("<bear> armchair") == "photo of a <bear> armchair"
    assert photo_of("bear", "armchair") == "photo of a bear and an armchair"
    assert with_article("Owl") == "an Owl"
    assert with_article("<owl> owl") == "a <owl> owl"


def test_a_preset_fills_its_template_with_the_words_of_its_subjects() -> None:
    assert PRESETS["object"].describe("<bear> teddy bear") == "photo of a <bear> teddy bear"
    assert PRESETS["style"].describe("<van> art") == "painting in the style of <van> art"


def test_a_prompt_without_tokens_names_categories_alone() -> None:
    bear = SubjectRecord(category="teddy bear", token="<bear>", more_tokens=("<bear-2>",))
    subjects = [bear, SubjectRecord(category="chair", token="<chair>"), SubjectRecord(category="dog")]
    both = "a <bear> <bear-2> teddy bear on a <chair> chair with a dog"
    assert without_tokens(both, subjects) == "a teddy bear on a chair with a dog"
    assert without_tokens("a <bear> <bear-2> in red", subjects) == "a teddy bear in red"
    assert without_tokens("a <bear> teddy bear in red", subjects) == "a teddy bear in red"
    assert without_tokens("a <bear> Teddy Bear in red", subjects) == "a teddy bear in red"
    assert without_tokens("a <chair>", subjects) == "a chair"
    assert without_tokens("a <new> <bear-2>", [SubjectRecord(category="", token="<new>"), bear]) == "a"


def test_the_article_fits_what_takes_the_place_of_tokens() -> None:
    owl = SubjectRecord(category="owl", token="<o>")
    ship = SubjectRecord(category="ship", token="<s>")
    assert without_tokens("drawing of a <o> owl and an <s> ship", [owl, ship]) == "drawing of an owl and a ship"
    assert without_tokens("A <o> in a hat", [owl]) == "An owl in a hat"
    assert without_tokens("the <o> owl of the Sahara <s>", [owl, ship]) == "the owl of the Sahara ship"


@pytest.mark.parametrize("template", ["photo of a {}", "photo of an {}"])
def test_templates_take_words_with_their_article(template: str) -> None:
    preset = Preset(caption=template)
    assert preset.describe("owl") == "photo of an owl"
    assert preset.describe("<o> owl", "armchair") == "photo of a <o> owl and an armchair"
    assert filled("a {} beside an {1}", ["owl", "<s> ship"]) == "an owl beside a <s> ship"
