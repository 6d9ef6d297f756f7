import json
import shutil
from pathlib import Path

import pytest

from command_line import Command, command, fails, run
from moongate.backbone import Backbone
from moongate.concept import Concept
from moongate.evaluation import Network, load_network


def test_evaluate_writes_a_record_and_draws_nothing_twice(
    bear: Path, pictures: Path, regularization: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, prompts = tmp_path / "evaluation", tmp_path / "prompts.txt"
    prompts.write_text("photo of a {}\na red {}\n")
    evaluate = command("evaluate", bear, prompts=prompts, count=1, steps=1, features=f"clip:{clip}", out=out)
    evaluate = evaluate.but(training_pictures=pictures, reference=regularization, device="cpu")
    run(evaluate)
    record = json.loads((out / "record.json").read_text())
    measures = [row["measure"] for row in record["measures"]]
    assert measures == ["text alignment", "image alignment", "KID", "FID"]
    assert {row["features"] for row in record["measures"]} == {f"clip:{clip}"}
    assert record["files"] == [{"name": str(bear), "hash": Concept.load(bear).hash}]
    assert [row.get("pictures") for row in record["measures"]] == [None, "training", None, None]
    shown = capsys.readouterr().out
    assert "training" in shown
    assert f"{record['measures'][1]['value']:.4f}" in shown
    drawn = {path: path.stat().st_mtime_ns for path in (out / "pictures").rglob("*.png")}
    assert len(drawn) == (2 + 4) + (2 + 4 - 1)  # the base alone draws the same, and one prompt is also a caption
    assert "the base alone" in (out / "index.html").read_text()
    run(evaluate.but(without_base=True))
    assert "the base alone" not in (out / "index.html").read_text()
    run(evaluate)
    assert {path: path.stat().st_mtime_ns for path in (out / "pictures").rglob("*.png")} == drawn
    assert json.loads((out / "record.json").read_text()) == record


def test_evaluate_takes_two_concepts_of_any_format_and_prompts_for_pairs(
    bear: Path, clip: Path, tmp_path: Path
) -> None:
    other = Concept.load(bear).renamed({"<bear>": "<other>"}).save(tmp_path / "other.safetensors")
    out, prompts = tmp_path / "evaluation", tmp_path / "prompts.txt"
    prompts.write_text("a {0} and a {1}\n")
    run(command("convert", other, to="lora", rank=16, out=tmp_path / "lora"))
    evaluate = command("evaluate", bear, tmp_path / "lora", prompts=prompts, count=1, steps=1, device="cpu")
    run(evaluate.but(features=f"clip:{clip}", out=out))
    record = json.loads((out / "record.json").read_text())
    assert record["prompts"][0]["drawn"] == "a <bear> teddy bear and a <other> teddy bear"
    assert record["prompts"][0]["read"] == "a teddy bear and a teddy bear"
    assert len(record["files"]) == 2


def test_evaluate_refuses_before_it_draws(
    bear: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate = command("evaluate", bear, out=tmp_path / "evaluation", device="cpu")
    assert "neither a set of prompts" in fails(capsys, evaluate.but(prompts="nowhere"))
    assert "2 folders of held out pictures were given for 1 subjects" in fails(
        capsys, evaluate.but(pictures=(pictures, pictures))
    )
    assert "Unknown features 'vgg'" in fails(capsys, evaluate.but(features="vgg"))
    assert "Without a concept" in fails(capsys, command("evaluate", out=tmp_path / "evaluation"))
    assert "is out of range" in fails(capsys, evaluate.but(seed=99999999999999999999, model="no-model"))
    assert not (tmp_path / "evaluation").exists()


def test_the_record_of_another_concept_is_replaced_only_on_request(
    bear: Path,
    clip: Path,
    train: Command,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, prompts = tmp_path / "evaluation", tmp_path / "prompts.txt"
    prompts.write_text("a {}")
    options = {"prompts": prompts, "count": 1, "steps": 1, "features": f"clip:{clip}", "out": out, "device": "cpu"}
    run(command("evaluate", bear, **options))
    run(train.but(out=tmp_path / "other.safetensors", seed=5))
    other = command("evaluate", tmp_path / "other.safetensors", **options)
    before = (out / "record.json").read_bytes()
    capsys.readouterr()
    message = fails(capsys, other)
    assert f"record.json is of {bear}. Choose another --out, or replace it (--overwrite)." in message
    with monkeypatch.context() as without_models:
        without_models.setattr(Backbone, "load", None)  # Moongate's own file says which concept it is
        assert "record.json is of" in fails(capsys, other)
        assert "2 folders of training pictures were given for 1 subjects" in fails(
            capsys, command("evaluate", bear, **options).but(training_pictures=(tmp_path / "bears",) * 2)
        )
    assert (out / "record.json").read_bytes() == before
    run(command("evaluate", bear, **options))  # its own record is made anew
    run(other.but(overwrite=True))
    assert json.loads((out / "record.json").read_text())["files"][0]["name"] == str(tmp_path / "other.safetensors")
    for content in ('{"song": "another program wrote this"}', "[1]", "no JSON"):
        (out / "record.json").write_text(content)
        assert "record.json is not the record of an evaluation" in fails(capsys, other)
        assert (out / "record.json").read_text() == content


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": "nowhere"}, "neither a set"),
        ({"features": "vgg"}, "Unknown features"),
        ({"pictures": "nowhere"}, "There is no picture or folder nowhere."),
        ({"training_pictures": "nowhere"}, "There is no picture or folder nowhere."),
        ({"reference": "nowhere"}, "There is no picture or folder nowhere."),
        ({"protocol": "cc101"}, "Unknown protocol 'cc101'"),
        ({"protocol": "customconcept101:nowhere"}, "There is no folder nowhere of customconcept101."),
    ],
)
def test_names_and_paths_are_checked_before_a_model_is_loaded(
    bear: Path,
    changes: dict[str, str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("moongate.backbone.Backbone.load", None)
    assert message in fails(capsys, command("evaluate", bear, device="cpu", **changes))


def test_a_set_with_places_for_subjects_is_refused_for_the_model_alone_before_it_is_loaded(
    capsys: pytest.CaptureFixture[str],
) -> None:
    message = fails(capsys, command("evaluate", prompts="pocket", model="a-model-that-is-nowhere"))
    assert "has a place for a subject, {}, but there is no concept. Name one, or write prompts without" in message


@pytest.fixture
def benchmark(tmp_path: Path) -> Path:
    """The layout of customconcept101/ with one subject, whose pictures are missing."""
    folder = tmp_path / "customconcept101"
    (folder / "prompts").mkdir(parents=True)
    (folder / "prompts" / "bear.txt").write_text("{} in the red\n{} on the beach\n")
    entry = {"class_prompt": "teddy bear", "instance_data_dir": "./bears", "prompt_filename": "prompts/bear.txt"}
    (folder / "dataset.json").write_text(json.dumps([entry]))
    return folder


def test_a_protocol_gives_the_prompts_and_the_training_pictures(
    bear: Path, benchmark: Path, pictures: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "evaluation"
    evaluate = command("evaluate", bear, protocol=f"customconcept101:{benchmark}", features=f"clip:{clip}", out=out)
    evaluate = evaluate.but(count=1, steps=1, device="cpu")
    run(evaluate)
    record = json.loads((out / "record.json").read_text())
    assert record["protocol"] == f"customconcept101:{benchmark}"
    assert [prompt["given"] for prompt in record["prompts"]] == ["{} in the red", "{} on the beach"]
    assert [row["measure"] for row in record["measures"]] == ["text alignment"]
    assert f"warning: {benchmark / 'bears'} is missing" in " ".join(capsys.readouterr().err.split())
    shutil.copytree(pictures, benchmark / "bears")
    run(evaluate)
    measures = json.loads((out / "record.json").read_text())["measures"]
    assert [row.get("pictures") for row in measures] == [None, "training"]


def test_a_protocol_that_does_not_fit_is_named_before_a_model_is_loaded(
    bear: Path, benchmark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate = command("evaluate", bear, protocol=f"customconcept101:{benchmark}", out=tmp_path / "evaluation")
    monkeypatch.setattr(Backbone, "load", None)
    listing = benchmark / "dataset.json"
    listing.write_text(listing.read_text().replace("teddy bear", "owl"))
    assert "has no entry for teddy bear. It has: owl." in fails(capsys, evaluate)
    assert "Leave out --prompts" in fails(capsys, evaluate.but(prompts="object"))
    conceptless = command("evaluate", **evaluate.options)
    assert "Name a concept file" in fails(capsys, conceptless)


def test_the_networks_that_suit_the_model_are_loaded_once_for_concept_and_base(
    bear: Path, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []

    def load(name: str, **options: str) -> Network:
        loaded.append(name)
        return load_network(f"clip:{clip}", **options)

    for home in ("moongate.evaluation", "moongate.evaluation.benchmark"):
        monkeypatch.setattr(f"{home}.load_network", load)
    (tmp_path / "prompts.txt").write_text("photo of a {}\n")
    evaluate = command("evaluate", bear, prompts=tmp_path / "prompts.txt", count=1, steps=1, out=tmp_path / "record")
    run(evaluate.but(device="cpu"))
    assert loaded == ["clip", "dino"]
