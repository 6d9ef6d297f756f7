from pathlib import Path

import pytest

from moongate.errors import CorpusError
from recipe.corpus import packages
from recipe.corpus.catalog import CATALOG, SPLIT, Object, is_example, is_held_out, read_objects


def test_the_split_holds_out_whole_objects_that_exist() -> None:
    for category, models in SPLIT["models"].items():
        assert set(models) <= set(CATALOG[category]["models"])
    assert set(SPLIT["drawing_families"]) <= set(CATALOG)
    assert set(SPLIT["drawing_families"].values()) <= {*packages.DRAWN_FAMILIES, "fluent-emoji-3d"}
    held_out = [model for models in SPLIT["models"].values() for model in models]
    assert len(held_out) == len(set(held_out)) >= 17


def test_every_category_is_still_seen_after_the_split() -> None:
    for category, sources in CATALOG.items():
        seen = set(sources["models"]) - set(SPLIT["models"].get(category, []))
        assert seen or sources["drawings"], category


def test_a_held_out_drawing_is_an_example_only_in_some_categories() -> None:
    def drawing(category: str) -> Object:
        key = f"{SPLIT['drawing_families'][category]}/{category}"
        return Object(key=key, category=category, name=category, kind="drawing", views=[])

    assert all(is_held_out(drawing(category)) for category in SPLIT["drawing_families"])
    assert is_example(drawing("owl"))
    others = [category for category in SPLIT["drawing_families"] if not is_example(drawing(category))]
    assert all(is_held_out(drawing(category)) for category in others)


def test_missing_cutouts_are_named_with_the_command_that_makes_them(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"python -m recipe.corpus.build --out"):
        read_objects(tmp_path / "cutouts.npz")
