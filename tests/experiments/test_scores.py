"""What a concept does to other categories."""

from pathlib import Path
from typing import Any

import pytest

from experiments import scores
from experiments.scores import Unrelated
from experiments.study import Size, Study
from moongate.evaluation import Reference


@pytest.mark.parametrize("method", [None, "dreambooth"])
def test_other_categories_are_drawn_from_captions_of_real_pictures_without_the_taught_one(
    method: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def evaluated(_study: Study, concept: object, prompts: list[str], comparisons: list[Reference]) -> dict[str, Any]:
        asked.extend((concept, prompts, *comparisons))
        return {"concept": None, "measures": []}

    monkeypatch.setattr(scores, "_evaluated", evaluated)
    study = Study(folder=tmp_path, size=Size(unrelated=7))
    monkeypatch.setattr(study, "single", lambda *arguments: arguments, raising=False)
    assert Unrelated("bulldog", method).measure(study)["measures"] == []
    concept, prompts, reference = asked
    assert concept == (("bulldog", "dreambooth", 0) if method else None)
    assert prompts == ["photo of a dog"]
    assert len(reference.pictures) == len(reference.captions) == 7
    assert not [caption for caption in reference.captions if "dog" in caption.split()]
    assert len(set(reference.captions)) > 1
