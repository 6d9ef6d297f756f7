from pathlib import Path

import pytest

from command_line import command, fails, run


def test_tokens_suggest_lists_rare_words(
    captioned: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suggest = command("tokens suggest", captioned, model=tiny_folder, device="cpu")
    run(suggest.but(occurrences=(3, 5)))
    out = capsys.readouterr().out
    assert all(word in out for word in ("dog", "cat", "chair"))
    assert "photo" not in out
    assert "No alphabetic token" in fails(capsys, suggest.but(occurrences=(100, 200)))


def test_a_source_that_is_not_there_or_has_no_caption_is_named_before_a_model_is_loaded(
    pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suggest = command("tokens suggest", "captions.txt", model="a-model-that-is-nowhere")
    assert "There is no file or folder captions.txt." in fails(capsys, suggest)
    assert "Nothing of the source can be used: " in fails(capsys, suggest.but(pictures))
