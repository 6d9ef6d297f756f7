import pytest

from making import invented
from moongate.backbone import Backbone
from moongate.concept import Concept


@pytest.fixture
def pair(tiny: Backbone) -> list[Concept]:
    return [invented(tiny, ("<one>", "bear"), seed=1), invented(tiny, ("<two>", "cat"), seed=2)]
