from dataclasses import replace

import numpy as np
import pytest

from making import make_concept
from moongate.backbone import Backbone, Fingerprint
from moongate.errors import BaseMismatchError, OptionError, TokenError
from moongate.evaluation import Way, compare, comparison, comparison_sheet, ways_of
from moongate.sampling import SampleOptions, sample

OPTIONS = SampleOptions(steps=2, guidance=1.0)
PROMPT = "photo of a <bear> bear"


def test_each_way_draws_what_sampling_draws_at_its_strength(tiny: Backbone) -> None:
    concept = make_concept(tiny)
    counts = []
    drawn = compare(
        tiny,
        [PROMPT],
        ways_of(concept, (0.5, 1.0)),
        seeds=[3, 4],
        options=OPTIONS,
        on_picture=lambda done, total: counts.append((done, total)),
    )
    assert list(drawn[PROMPT]) == ["without", "strength 0.5", "strength 1"]
    assert counts == [(number, 6) for number in range(1, 7)]
    plain = [picture.image for picture in sample(tiny, ["photo of a bear"] * 2, seeds=[3, 4], options=OPTIONS)]
    with concept.applied(tiny, strength=0.5):
        half = [picture.image for picture in sample(tiny, [PROMPT] * 2, seeds=[3, 4], options=OPTIONS)]
    for label, wanted in (("without", plain), ("strength 0.5", half)):
        assert [picture.seed for picture in drawn[PROMPT][label]] == [3, 4]
        assert all(np.array_equal(a.image, b) for a, b in zip(drawn[PROMPT][label], wanted, strict=True))


def test_where_a_concept_lacks_a_token_the_category_stands(tiny: Backbone) -> None:
    bear, cat = make_concept(tiny), make_concept(tiny, tokens=("<cat>",))
    ways = [Way(label="bear", concept=bear), Way(label="cat", concept=cat)]
    (by_way,) = compare(tiny, ["a <bear> bear and a <cat>"], ways, seeds=[0], options=OPTIONS).values()
    assert [by_way[label][0].prompt for label in by_way] == ["a <bear> bear and a bear", "a bear and a <cat>"]


def test_an_unknown_token_and_what_is_given_twice_are_refused_before_drawing(
    tiny: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "sample", None)
    ways = ways_of(make_concept(tiny))
    other = replace(make_concept(tiny), base="other", fingerprint=Fingerprint(layout="other", norms=(1.0,)))
    with pytest.raises(TokenError, match="unknown token '<cat>'"):
        compare(tiny, ["a <cat>"], ways, seeds=[0], options=OPTIONS)
    with pytest.raises(OptionError, match="The seed 1 is given twice"):
        compare(tiny, [PROMPT], ways, seeds=[1, 1], options=OPTIONS)
    with pytest.raises(OptionError, match="no prompt to compare"):
        compare(tiny, [], ways, seeds=[1], options=OPTIONS)
    with pytest.raises(BaseMismatchError, match="made for another model"):
        compare(tiny, [PROMPT], [*ways, Way(label="other", concept=other)], seeds=[1], options=OPTIONS)
    last = Way(label="last", concept=make_concept(tiny), prompts=("a <cat>",))
    with pytest.raises(TokenError, match="unknown token '<cat>'"):
        compare(tiny, [PROMPT, "a <cat>"], [Way(label="first", prompts=(PROMPT,)), last], seeds=[1], options=OPTIONS)


def test_the_sheet_has_a_column_for_each_way_and_a_row_for_each_seed(tiny: Backbone) -> None:
    drawn = compare(tiny, [PROMPT], ways_of(make_concept(tiny), (1.0,)), seeds=[0, 1, 2], options=OPTIONS)
    side = tiny.resolution_px
    sheet = comparison_sheet(drawn, heading="tiny")
    assert sheet.width == 2 * (side + 4) + 4
    assert 3 * side < sheet.height < 3 * side + 300
