"""Records of pictures to look at."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from experiments.pictures import Attention
from experiments.records import PICTURE
from experiments.study import Size
from making import make_concept
from moongate import Backbone
from moongate.analysis import word_maps
from moongate.sampling import SampleOptions

SAMPLING = SampleOptions(steps=1, guidance=1.0, scheduler="dpm++")


def test_the_attention_of_a_taught_subject_is_that_of_its_own_words_with_its_concept(tiny: Backbone) -> None:
    concept = replace(make_concept(tiny))
    study: Any = SimpleNamespace(backbone=tiny, size=replace(Size(), sampling=SAMPLING), single=lambda *_: concept)
    values = Attention("jar", "photo of a {} on the beach").measure(study)
    assert values["prompt"] == "photo of a <bear> bear on the beach"
    with concept.applied(tiny):
        (expected,) = word_maps(tiny, values["prompt"], options=SAMPLING)
    assert [word["word"] for word in values["words"]] == [word for word, _ in expected.words]
    assert "<bear>" in [word["word"] for word in values["words"]]
    for found, (_, attention) in zip(values["words"], expected.words, strict=True):
        assert np.asarray(found["map"]) == pytest.approx(attention, abs=6e-4)
        assert np.max(found["map"]) == 1
    assert values[PICTURE].startswith(b"RIFF")
