"""Processes that train together, with gloo on this machine. They are forked, which is quick."""

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
from torch import distributed

from moongate import ranks
from moongate.backbone import Backbone
from moongate.backbone.text import Conditioning
from moongate.data import Regularization, Subject
from moongate.errors import OptionError, RankLost
from moongate.merging.neutral import neutral_captions, regularization_gram
from moongate.ranks import ALONE, Ranks, joined
from moongate.training import Step, TrainOptions, train
from moongate.training.method import METHODS
from moongate.training.neutral_decay import NeutralDecay

METHOD = METHODS["custom-diffusion"]
MakeSubject = Callable[..., Subject]

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def together(count: int, folder: Path, work: Callable[[], object]) -> list[object]:
    """Do some work in forked processes that have joined, and return what it returns or raises in each."""
    context = multiprocessing.get_context("fork")

    def rank(index: int, pipe: Connection) -> None:
        distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=index, world_size=count)
        try:
            pipe.send(work())
        except Exception as error:
            pipe.send(error)

    pipes = [context.Pipe() for _ in range(count)]
    children = [context.Process(target=rank, args=(index, theirs)) for index, (_, theirs) in enumerate(pipes)]
    for child in children:
        child.start()
    for _, theirs in pipes:
        theirs.close()
    results: list[object] = []
    for ours, _ in pipes:
        try:
            results.append(ours.recv() if ours.poll(120) else None)
        except EOFError:  # it ended without a result
            results.append(None)
    for child in children:
        child.join(10)
        child.kill()
    return results


def shared(
    backbone: Backbone, subject: Subject, prior: Regularization, **options: object
) -> Callable[[], tuple[str, list[float]]]:
    """Return a function that trains with some options and returns the concept's hash and the losses."""

    def run() -> tuple[str, list[float]]:
        steps: list[Step] = []
        chosen = TrainOptions(**{"steps": 3, "batch": 4, **options})
        concept = train(backbone, [subject], [prior], METHOD, options=chosen, on_step=steps.append)
        return concept.hash, [step.loss for step in steps]

    return run


def test_two_ranks_give_the_concept_of_one_that_accumulates_two_shards(
    tiny: Backbone, make_subject: MakeSubject, prior: Regularization, tmp_path: Path
) -> None:
    subject = make_subject()
    concept_hash, losses = shared(tiny, subject, prior, shards=2)()
    both = together(2, tmp_path, shared(tiny, subject, prior))
    assert both == [(concept_hash, losses), (concept_hash, [])]  # the first rank alone calls `on_step`
    assert shared(tiny, subject, prior)()[0] != concept_hash, "the number of shards decides the last bits"


@pytest.mark.slow
def test_four_ranks_two_that_accumulate_and_one_give_the_same_concept(
    each: Backbone, make_subject: MakeSubject, prior: Regularization, tmp_path: Path
) -> None:
    subjects = make_subject(), make_subject()
    hashes = {shared(each, subjects[0], prior, shards=4)()[0]}
    for count in (2, 4):
        (tmp_path / str(count)).mkdir()
        results = together(count, tmp_path / str(count), shared(each, subjects[0], prior, shards=4))
        hashes |= {result[0] for result in results}
    assert len(hashes) == 1


def test_a_run_of_two_ranks_is_written_once_and_continues_on_one(
    tiny: Backbone, make_subject: MakeSubject, prior: Regularization, tmp_path: Path
) -> None:
    subject, run = make_subject(), tmp_path / "run"
    together(2, tmp_path, shared(tiny, subject, prior, steps=2, run_folder=run))
    assert len((run / "log.jsonl").read_text().splitlines()) == 2
    resumed = shared(tiny, subject, prior, shards=2, run_folder=run, resume=True)()
    assert resumed[0] == shared(tiny, subject, prior, shards=2)()[0]
    with pytest.raises(OptionError, match="was started with shard = 2, not None"):
        shared(tiny, subject, prior, steps=4, run_folder=run, resume=True)()


def test_shards_that_would_not_be_equal_are_refused_by_all_ranks_before_any_work(
    tiny: Backbone, make_subject: MakeSubject, prior: Regularization, tmp_path: Path
) -> None:
    results = together(2, tmp_path, shared(tiny, make_subject(), prior, batch=3, run_folder=tmp_path / "run"))
    assert all("3 target pictures of a step cannot be divided into 2 equal shards" in str(each) for each in results)
    assert not (tmp_path / "run").exists()


def test_sums_are_added_in_the_order_of_the_shards(tmp_path: Path) -> None:
    """In float32 these four numbers give another sum in any other order or grouping."""
    numbers = [torch.tensor([value]) for value in (1e8, 1.0, -1e8, 1.0)]
    one_by_one = ((numbers[0] + numbers[1]) + numbers[2]) + numbers[3]
    shards = [[number] for number in numbers]
    assert torch.equal(Ranks().summed(shards)[0], one_by_one)

    def work() -> float:
        own = Ranks.current()
        return float(own.summed(shards[2 * own.index : 2 * own.index + 2])[0])

    assert together(2, tmp_path, work) == [float(one_by_one)] * 2
    assert float((numbers[0] + numbers[1]) + (numbers[2] + numbers[3])) != float(one_by_one)


def test_the_others_begin_when_the_first_rank_is_through(tmp_path: Path) -> None:
    def work() -> bool:
        own = Ranks.current()
        with own.first_alone():
            if own.is_first:
                time.sleep(0.2)
                (tmp_path / "made").touch()
            return (tmp_path / "made").exists()

    assert together(2, tmp_path, work) == [True, True]


def test_ranks_share_the_neutral_captions_and_get_the_bits_of_one_alone(
    tiny: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captions = neutral_captions()[:300]
    expected = regularization_gram(tiny, captions).tolist()
    read: list[Sequence[str]] = []
    encode = Backbone.encode_text

    def counted(backbone: Backbone, given: Sequence[str], **options: bool) -> Conditioning:
        read.append(given)
        return encode(backbone, given, **options)

    monkeypatch.setattr(Backbone, "encode_text", counted)

    def work(*caches: Path | None) -> tuple[list[list[float]], int]:
        read.clear()
        own = Ranks.current()
        cache = caches[own.index] if caches else None
        return regularization_gram(tiny, captions, cache=cache, ranks=own).tolist(), len(read)

    def gathered(count: int, *caches: Path | None) -> list[int]:
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        results = together(count, folder, lambda: work(*caches))
        assert all(gram == expected for gram, _ in results)
        return [batches for _, batches in results]

    assert gathered(2) == [3, 3]
    assert gathered(4) == [2, 2, 1, 1], "of six batches each is read once"
    caches = tmp_path / "first", tmp_path / "second"
    assert gathered(2, *caches) == [1 + 3, 3], "the first captions are read to identify the text encoder"
    assert gathered(2, *caches) == [1, 0]
    assert gathered(2, *reversed(caches)) == [1 + 3, 3], "the cache of the first process counts for both"
    assert gathered(2, tmp_path / "first", None) == [1, 0]


@pytest.mark.parametrize("knowing", [0, 1])
def test_a_process_that_has_read_the_neutral_captions_alone_does_not_wait_for_one_that_has_not(
    tiny_folder: Path, tmp_path: Path, knowing: int
) -> None:
    def work() -> list[list[float]]:
        backbone = Backbone.load(tiny_folder, device="cpu")
        if Ranks.current().index == knowing:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Ranks, "current", lambda: ALONE)  # as before it joined the other
                NeutralDecay(backbone, 1.0)
        return NeutralDecay(backbone, 1.0).directions.tolist()

    first, second = together(2, tmp_path, work)
    assert isinstance(first, list)
    assert first == second


def test_tensors_of_any_shape_are_summed_in_as_few_exchanges_as_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "NUMBERS_AT_ONCE", 10)
    exchanged: list[int] = []

    def gathered(_: Ranks, tensor: torch.Tensor) -> list[torch.Tensor]:
        exchanged.append(tensor.shape[1])
        return [tensor]

    monkeypatch.setattr(Ranks, "gathered", gathered)
    shapes = (2, 3), (), (3,), (0,), (5, 4), (1, 1, 1)
    shards = [[torch.randn(shape) for shape in shapes] for _ in range(3)]
    sums = Ranks().summed(shards)
    assert exchanged == [10, 20, 1], "a tensor that is too large goes alone"
    for total, parts in zip(sums, zip(*shards, strict=True), strict=True):
        assert torch.equal(total, (parts[0] + parts[1]) + parts[2])


@pytest.mark.parametrize(
    "exchange",
    [lambda own: own.summed([[torch.zeros(1)]]), lambda own: own.collected("a"), lambda own: own.of_first("a")],
)
def test_a_rank_whose_neighbor_has_ended_says_so(exchange: Callable[[Ranks], object], tmp_path: Path) -> None:
    def work() -> None:
        if Ranks.current().index == 0:
            os._exit(1)
        exchange(Ranks.current())

    lost = together(2, tmp_path, work)[1]
    assert isinstance(lost, RankLost)
    assert "has ended" in str(lost)
    assert "--resume" in str(lost)


def test_without_a_launcher_a_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined() as ranks:
        assert ranks == Ranks(index=0, count=1)


def test_more_ranks_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(OptionError, match="this machine has 2 GPUs"), joined("cuda"):
        pass
