"""Processes that are forked from this one and train together."""

import dataclasses
import multiprocessing
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from moongate.backbone import Backbone
from moongate.concept import Concept
from moongate.data import Regularization, Subject
from moongate.errors import OptionError, RankLost
from moongate.ranks import Ranks
from moongate.training import Plan, Step, TrainOptions, train
from moongate.training.method import METHODS
from moongate.training.processes import processes_for, together

METHOD = METHODS["custom-diffusion"]
MakeSubject = Callable[..., Subject]


@pytest.fixture
def sharing(tiny: Backbone, monkeypatch: pytest.MonkeyPatch) -> Backbone:
    """A model that trains in two shards."""
    monkeypatch.setattr(tiny, "settings", dataclasses.replace(tiny.settings, shards=2))
    return tiny


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def taught(
    backbone: Backbone,
    subject: Subject,
    prior: Regularization,
    on_step: Callable[[Step], None] = lambda _: None,
    **options: object,
) -> Callable[[], Concept]:
    chosen = TrainOptions(**{"steps": 3, "batch": 4, **options})
    return lambda: train(backbone, [subject], [prior], METHOD, options=chosen, on_step=on_step)


def planned(backbone: Backbone, subject: Subject, prior: Regularization, **options: object) -> Plan:
    return Plan.of(backbone, [subject], [prior], METHOD, options=TrainOptions(**{"batch": 4, **options}))


def test_processes_give_the_concept_of_one_and_leave_nothing_behind(
    sharing: Backbone, make_subject: MakeSubject, prior: Regularization, two_threads: None, tmp_path: Path
) -> None:
    steps: list[Step] = []
    work = taught(sharing, make_subject(), prior, steps.append, run_folder=tmp_path / "run")
    both = together(work, processes=2)
    assert [step.index for step in steps] == [1, 2, 3]
    assert len((tmp_path / "run" / "log.jsonl").read_text().splitlines()) == 3
    assert together(taught(sharing, make_subject(), prior), processes=1).hash == both.hash
    assert Ranks.current() == Ranks()
    assert torch.get_num_threads() == 2
    assert multiprocessing.active_children() == []


def test_processes_meet_below_any_folder_for_temporary_files(
    tmp_path: Path, two_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = tmp_path / "with a ?, a # and a %20"
    odd.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(odd))
    assert together(lambda: float(Ranks.current().summed([[torch.ones(1)]])[0]), processes=2) == 2
    assert list(tmp_path.iterdir()) == [odd]
    assert list(odd.iterdir()) == []


def test_a_model_that_sets_shards_is_shared_by_as_many_threads_as_there_are(
    sharing: Backbone, make_subject: MakeSubject, prior: Regularization, two_threads: None
) -> None:
    subject = make_subject()
    assert planned(sharing, subject, prior).shards == 2
    assert processes_for(planned(sharing, subject, prior)) == 2
    assert processes_for(planned(sharing, subject, prior, batch=3)) == 1, "three pictures are no two equal shards"
    assert processes_for(planned(sharing, subject, prior, shards=3, batch=3)) == 1
    assert processes_for(planned(sharing, subject, prior), 1) == 1
    torch.set_num_threads(1)
    plan = planned(sharing, subject, prior)
    assert (plan.shards, processes_for(plan)) == (2, 1), "the shards do not depend on the machine"


def test_another_model_trains_in_one_process_with_all_its_threads(
    tiny: Backbone, make_subject: MakeSubject, prior: Regularization, two_threads: None
) -> None:
    plan = planned(tiny, make_subject(), prior)
    assert (plan.shards, processes_for(plan)) == (1, None)
    assert together(torch.get_num_threads, processes=None) == 2
    assert together(torch.get_num_threads, processes=1) == 1
    four = Plan.of(tiny, [make_subject()], [prior], METHOD, options=TrainOptions(batch=4), processes=4)
    assert (four.shards, processes_for(four, 4)) == (4, 4)


def test_processes_are_refused_where_there_can_be_only_one(
    sharing: Backbone, make_subject: MakeSubject, prior: Regularization, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned(sharing, make_subject(), prior)
    with pytest.raises(OptionError, match="2 shards of a step cannot be divided among 3 processes"):
        Plan.of(sharing, [make_subject()], [prior], METHOD, options=TrainOptions(batch=4, shards=2), processes=3)
    with pytest.raises(OptionError, match="4 target pictures of a step cannot be divided into 3 equal shards"):
        Plan.of(sharing, [make_subject()], [prior], METHOD, options=TrainOptions(batch=4), processes=3)
    monkeypatch.setattr("sys.platform", "darwin")
    with pytest.raises(OptionError, match="2 processes cannot train together here: Only Linux"):
        processes_for(plan, 2)
    assert processes_for(plan) is None


def test_a_process_that_dies_ends_the_training_and_it_continues(
    sharing: Backbone, make_subject: MakeSubject, prior: Regularization, tmp_path: Path
) -> None:
    def kill(step: Step) -> None:
        if step.index == 2:
            (other,) = multiprocessing.active_children()
            os.kill(other.pid or 0, signal.SIGKILL)
            other.join()

    options = {"steps": 5, "run_folder": tmp_path / "run", "checkpoint_steps": 1}
    with pytest.raises(RankLost, match="has ended"):
        together(taught(sharing, make_subject(), prior, kill, **options), processes=2)
    assert multiprocessing.active_children() == []
    resumed = together(taught(sharing, make_subject(), prior, resume=True, **options), processes=2)
    assert resumed.hash == together(taught(sharing, make_subject(), prior, steps=5), processes=1).hash


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_first_process_stops_all_with_their_state(
    number: signal.Signals, sharing: Backbone, make_subject: MakeSubject, prior: Regularization, tmp_path: Path
) -> None:
    def stop(step: Step) -> None:
        if step.index == 2:
            os.kill(os.getpid(), number)

    options = {"steps": 5, "run_folder": tmp_path / "run"}
    with pytest.raises(KeyboardInterrupt):
        together(taught(sharing, make_subject(), prior, stop, **options), processes=2)
    assert multiprocessing.active_children() == []
    resumed = together(taught(sharing, make_subject(), prior, resume=True, **options), processes=2)
    assert resumed.hash == together(taught(sharing, make_subject(), prior, steps=5), processes=1).hash


def test_an_error_of_the_first_process_alone_ends_the_others(
    sharing: Backbone, make_subject: MakeSubject, prior: Regularization
) -> None:
    def fail(_step: Step) -> None:
        raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError, match="the disk is full"):
        together(taught(sharing, make_subject(), prior, fail), processes=2)
    assert multiprocessing.active_children() == []
    assert Ranks.current() == Ranks()
