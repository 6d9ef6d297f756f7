from moongate.concept import SubjectRecord
from moongate.data.captions import PRESETS, photo_of, with_article, without_tokens


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
    assert without_tokens("a <chair>", subjects) == "a chair"
    assert without_tokens("a <new> <bear-2>", [SubjectRecord(category="", token="<new>"), bear]) == "a"
