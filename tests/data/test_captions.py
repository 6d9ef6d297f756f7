from moongate.data.captions import PRESETS, photo_of, with_article


def test_the_article_fits_the_word() -> None:
    assert photo_of("armchair") == "photo of an armchair"
    assert photo_of("<bear> armchair") == "photo of a <bear> armchair"
    assert photo_of("bear", "armchair") == "photo of a bear and an armchair"
    assert with_article("Owl") == "an Owl"
    assert with_article("<owl> owl") == "a <owl> owl"


def test_a_preset_fills_its_template_with_the_words_of_its_subjects() -> None:
    assert PRESETS["object"].describe("<bear> teddy bear") == "photo of a <bear> teddy bear"
    assert PRESETS["style"].describe("<van> art") == "painting in the style of <van> art"
