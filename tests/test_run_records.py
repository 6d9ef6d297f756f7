import json
from pathlib import Path

import pytest

from moongate.errors import OptionError
from moongate.run_records import read_config, read_progress, read_steps


@pytest.mark.parametrize(
    ("index", "step"), [("3", 3), ("1e999", None), ("NaN", None), ("[]", None), ("[" * 3000, None)]
)
def test_progress_is_none_where_the_log_gives_no_step(index: str, step: int | None, tmp_path: Path) -> None:
    config = {"backbone": "tiny", "steps": 10, "batch": 1, "regularization": []}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "log.jsonl").write_text(f'{{"index": {index}, "pictures_per_second": 2.0}}\n')
    progress = read_progress(tmp_path)
    assert (progress.step if progress else None) == step


def test_records_that_are_nested_without_end_are_named(tmp_path: Path) -> None:
    for name, read in (("config.json", read_config), ("log.jsonl", read_steps)):
        (tmp_path / name).write_text("[" * 100_000 + "\n")
        with pytest.raises(OptionError, match="holds no records of a run that can be read"):
            read(tmp_path)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("3", "line 2 of log.jsonl does not say its step"),
        ("{}", "line 2 of log.jsonl does not say its step"),
        ('{"index": "2"}', "line 2 of log.jsonl does not say its step"),
        ('{"index": 2, "target_loss": "low"}', "target_loss in line 2 of log.jsonl is 'low', which is not a number"),
        ('{"index": 2, "held_out_loss": [1]}', "held_out_loss in line 2"),
        ('{"index": 2, "prior_loss": 1e308}', "prior_loss in line 2"),
        (f'{{"index": 2, "prior_loss": {10**400}}}', "prior_loss in line 2"),
    ],
)
def test_a_line_of_the_log_without_its_numbers_is_named(line: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text(f'{{"index": 1, "held_out_loss": null, "prior_loss": NaN}}\n{line}\n')
    with pytest.raises(OptionError, match=said):
        read_steps(tmp_path)
