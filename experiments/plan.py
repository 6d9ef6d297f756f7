"""What is still to be measured and how long it will take: `python -m experiments --plan`."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from experiments.records import Needs, Record, Results, Training
from experiments.scores import OURS, Single
from experiments.study import IN_FULL, for_pocket, steps_for

__all__ = ["SECONDS_PER_PICTURE", "SECONDS_PER_STEP", "Cost", "Speeds", "costs", "planned"]

SECONDS_PER_STEP = 0.36
"""Of our method on one core, where no record of the present weights says it: a minute and a half for 250 steps."""
RELATIVE = {"fine-tune-all": 1.46, "dreambooth": 1.29, "textual-inversion": 0.71}
"""Time of a step relative to our method's: on earlier weights 125 steps took 51, 45 and 25 s, where ours took 35 s."""
SECONDS_PER_PICTURE = 0.36
GENERATED = 45
"""Pictures that a method with generated regularization draws once for each category: half of those of the pool."""


@dataclass(frozen=True, kw_only=True)
class Speeds:
    """What one step and one picture take on one core, in seconds."""

    steps: Mapping[str, float]
    """By method, for those that were measured."""
    picture: float

    def training(self, training: Training) -> float:
        """Return the seconds that a training takes."""
        method = training.method.removesuffix(IN_FULL)
        ours = self.steps.get(OURS, SECONDS_PER_STEP)
        return _steps(training) * self.steps.get(method, RELATIVE.get(method, 1.0) * ours)

    @classmethod
    def of(cls, results: Results, records: Sequence[Record]) -> "Speeds":
        """Return the medians of the records that were measured on the present weights, or the usual speeds."""
        steps: dict[str, list[float]] = {}
        pictures = []
        for record in results.present(records):
            values, needs = results[record], record.needs(results.size)
            if isinstance(record, Single) and values["training"].get("seconds"):
                training = values["training"]
                steps.setdefault(record.method.removesuffix(IN_FULL), []).append(
                    training["seconds"] / training["steps"]
                )
            if needs.pictures and not needs.trainings and values.get("seconds"):
                pictures.append(values["seconds"] / needs.pictures)
        by_method = {method: median(some) for method, some in steps.items()}
        return cls(steps=by_method, picture=median(pictures or [SECONDS_PER_PICTURE]))


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one experiment still needs in addition to those before it."""

    records: int
    trainings: int
    pictures: int
    seconds: float
    """Of one core."""


def costs(results: Results, experiments: Mapping[str, Sequence[Record]]) -> dict[str, Cost]:
    """Return what each experiment costs; a record and a training count for the first experiment that needs them.

    What a measured record was made of counts as trained.
    """
    everything = [record for records in experiments.values() for record in records]
    speeds = Speeds.of(results, everything)
    done = {record.key for record in results.present(everything)}
    trained = {t for r in everything if r.key in done for t in r.needs(results.size).trainings}
    drawn = {source for training in trained for source in _generated(training)}
    found = {}
    for name, records in experiments.items():
        missing = {record.key: record for record in records if record.key not in done}
        done |= set(missing)
        needs: list[Needs] = [record.needs(results.size) for record in missing.values()]
        new = {training for need in needs for training in need.trainings} - trained
        new |= {_first(training) for training in new if training.after} - trained
        trained |= new
        generated = {source for training in new for source in _generated(training)} - drawn
        drawn |= generated
        pictures = sum(need.pictures for need in needs) + GENERATED * len(generated)
        seconds = sum(map(speeds.training, new)) + pictures * speeds.picture
        found[name] = Cost(records=len(missing), trainings=len(new), pictures=pictures, seconds=seconds)
    return found


def planned(results: Results, experiments: Mapping[str, Sequence[Record]], *, on_request: Collection[str] = ()) -> str:
    """Return the costs as a table for people, with the sum of those that run without being named."""
    found = costs(results, experiments)
    rows = [(name, cost.records, cost.trainings, cost.pictures, cost.seconds / 3600) for name, cost in found.items()]
    if summed := [row for row in rows if row[0] not in on_request]:
        total = ("sum", *(sum(column) for column in list(zip(*summed, strict=True))[1:]))
        rows = [*summed, total, *(row for row in rows if row[0] in on_request)]
    width = max(len(row[0]) for row in rows)
    lines = [f"{'experiment':{width}}  records  trainings  pictures  core hours"]
    lines += [f"{name:{width}}  {r:7}  {t:9}  {p:8}  {hours:10.2f}" for name, r, t, p, hours in rows]
    return "\n".join(lines)


def _steps(training: Training) -> int:
    return training.steps or steps_for(for_pocket(training.method), len(training.examples))


def _first(training: Training) -> Training:
    return Training((str(training.after),), training.method, training.seed)


def _generated(training: Training) -> list[str]:
    """Return the examples whose categories are drawn for regularization; categories are one to one with examples."""
    return list(training.examples) if for_pocket(training.method).generates_prior else []
