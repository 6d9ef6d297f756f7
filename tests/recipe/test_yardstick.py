from pathlib import Path

import pytest

from moongate.errors import OptionError
from recipe.corpus import Corpus
from recipe.yardstick import YardstickOptions, make_prompts


def test_prompts_are_fixed_and_in_styles_of_the_corpus(corpus_folder: Path) -> None:
    corpus = Corpus(corpus_folder)
    prompts = make_prompts(corpus, ("ball", "chair", "unicorn"), per_category=2)
    assert prompts == make_prompts(corpus, ("ball", "chair", "unicorn"), per_category=2)
    names = [categories for categories, _ in prompts]
    assert names[:4] == [("ball",), ("ball",), ("chair",), ("chair",)]
    assert {frozenset(pair) for pair in names[4:]} == {frozenset({"ball", "chair"})}
    for categories, caption in prompts:
        assert caption.startswith("photo of a ")
        assert all(name in caption for name in categories)


def test_counts_below_one_are_refused() -> None:
    with pytest.raises(OptionError, match=r"must be at least 1"):
        YardstickOptions(per_category=0)
