"""The plan counts each record and each training once, and reckons with the speeds that were measured."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from experiments.__main__ import Options, main
from experiments.plan import GENERATED, RELATIVE, SECONDS_PER_PICTURE, SECONDS_PER_STEP, costs, planned
from experiments.records import Record, Results
from experiments.scores import OURS, Base, Several, Single
from experiments.study import PAIRS, Size, for_pocket
from moongate.errors import OptionError

FIRST, SECOND = PAIRS[0]
SIZE = Size(count=1, pair_count=2, references=30)


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return Results(file=tmp_path / "records.jsonl", new=tmp_path / "new", size=SIZE)


def measured(seconds: float, *, per_step: float = 0.1) -> dict[str, Any]:
    return {"seconds": seconds, "training": {"steps": 100, "seconds": 100 * per_step}}


def test_a_training_counts_for_the_first_experiment_that_needs_it(results: Results) -> None:
    merge, sequential = Several(PAIRS[0], "merge"), Several(PAIRS[0], "sequential")
    experiments: dict[str, list[Record]] = {
        "first": [Single(FIRST, OURS)],
        "second": [merge, sequential],
        "third": [merge, Several(PAIRS[0], "base")],
    }
    found = costs(results, experiments)
    assert [(cost.records, cost.trainings, cost.pictures) for cost in found.values()] == [
        (1, 1, 20 + 30),
        (2, 2, 2 * 12 * 2),  # the second subject alone, and after the first
        (1, 0, 12 * 2),
    ]
    steps = for_pocket(OURS).steps_per_subject
    assert found["second"].seconds == pytest.approx(2 * steps * SECONDS_PER_STEP + 48 * SECONDS_PER_PICTURE)


def test_what_a_measured_record_was_made_of_costs_nothing_more(results: Results) -> None:
    results.put(Single(FIRST, OURS), measured(60))
    cost = costs(results, {"pairs": [Single(FIRST, OURS), Several(PAIRS[0], "merge")]})["pairs"]
    assert (cost.records, cost.trainings) == (1, 1)


def test_speeds_are_those_of_the_records_of_the_present_weights(results: Results) -> None:
    results.put(Base(FIRST), measured(50 * 0.2))
    results.put(Single(FIRST, OURS), measured(99, per_step=0.1))
    everything: list[Record] = [Base(FIRST), Single(FIRST, OURS), Single(SECOND, "fine-tune-all")]
    cost = costs(results, {"table": everything})["table"]
    steps = for_pocket("fine-tune-all").steps_per_subject
    assert cost.seconds == pytest.approx(steps * 0.1 * RELATIVE["fine-tune-all"] + 50 * 0.2)
    stale = Results(file=results.file, new=results.new, size=SIZE, weights="of tomorrow")
    assert costs(stale, {"table": everything})["table"].records == 3


def test_generated_regularization_is_drawn_once_for_a_category(results: Results) -> None:
    ways = [Single(FIRST, "dreambooth", kid=False), Single(FIRST, "dreambooth", 1, kid=False)]
    assert costs(results, {"table": ways})["table"].pictures == 2 * 20 + GENERATED


def test_the_plan_adds_up_what_runs_without_being_named(results: Results) -> None:
    experiments: dict[str, list[Record]] = {"a": [Base(FIRST)], "b": [Base(SECOND)], "c": [Single(FIRST, OURS)]}
    lines = [line.split() for line in planned(results, experiments, on_request=("c",)).splitlines()]
    assert [line[0] for line in lines] == ["experiment", "a", "b", "sum", "c"]
    assert lines[3][1:4] == ["2", "0", "100"]


def test_the_plan_of_all_tables_is_printed_and_stays_below_twenty_core_hours(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    main(Options(plan=True, records=tmp_path / "none.jsonl", folder=tmp_path / "run", results=tmp_path))
    printed = capsys.readouterr().out
    (total,) = [line.split() for line in printed.splitlines() if line.startswith("sum")]
    assert 0 < float(total[-1]) <= 20
    assert "paper_steps" in printed
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("options", [Options(names=("table9",)), Options(seeds=4)])
def test_an_unknown_experiment_or_seed_is_named_before_any_work(options: Options, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"no experiment 'table9'|3 seeds, not 4"):
        main(dataclasses.replace(options, folder=tmp_path / "run"))
    assert not list(tmp_path.iterdir())
