import _thread
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch

from command_line import Command, command, fails, run
from conftest import write_pictures
from moongate.backbone import Backbone
from moongate.cli import Train
from moongate.concept import Concept
from moongate.data import Preset, Regularization
from moongate.run_page import Album, album
from moongate.training import TrainOptions
from moongate.training.selection import Judge


@pytest.fixture
def two(train: Command, pictures: Path, tmp_path: Path) -> Command:
    """A training of `<bear> teddy bear` and `<dog> dog` together, without a file name for the concept."""
    write_pictures(tmp_path / "dogs", count=2, seed=3)
    both = train.but(pictures, tmp_path / "dogs", category=["teddy bear", "dog"], token=["<bear>", "<dog>"])
    return both.without("out")


def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the test fail if a picture is encoded or drawn."""
    for name in ("encode_images", "predict"):
        monkeypatch.setattr(Backbone, name, None)


def test_train_writes_the_concept_and_a_run_folder(
    train: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(train.but(validate_every=2))
    concept = Concept.load(tmp_path / "bear.safetensors")
    assert concept.subjects[0].words == "<bear> teddy bear"
    folder = tmp_path / "bear.run"
    records = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    assert records == {"config.json", "log.jsonl", "state.pt", "result.json", "pictures", "pictures.jsonl"}
    assert {(each.part, each.step, each.seed) for each in Album(folder).drawn()} == {
        ("validation", 2, seed) for seed in range(4)
    }
    assert "moongate generate" in capsys.readouterr().out


def test_validation_pictures_do_not_change_the_concept(train: Command, tmp_path: Path) -> None:
    run(train)
    plain = Concept.load(tmp_path / "bear.safetensors").hash
    run(train.but(validate_every=1, overwrite=True))
    assert Concept.load(tmp_path / "bear.safetensors").hash == plain


def test_processes_that_share_the_steps_give_the_concept_of_one(
    train: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(train.but(batch=2, processes=2, json=True))
    printed = capsys.readouterr()
    assert json.loads(printed.out)["steps"] == 3
    assert printed.err.count("Wrote") == 1, "the first process speaks for both"
    shared = Concept.load(tmp_path / "bear.safetensors").hash
    run(train.but(batch=2, accumulate=2, processes=1, overwrite=True))
    assert Concept.load(tmp_path / "bear.safetensors").hash == shared
    capsys.readouterr()
    assert "processes is 0; it must be at least 1" in fails(capsys, train.but(processes=0, overwrite=True))
    odd = train.but(batch=3, processes=2, overwrite=True)
    assert "3 target pictures of a step cannot be divided into 2 equal shards" in fails(capsys, odd)


def test_ctrl_c_then_resume_gives_the_concept_of_an_uninterrupted_run(
    train: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(train)
    whole = Concept.load(tmp_path / "bear.safetensors").hash
    (tmp_path / "bear.safetensors").unlink()
    shutil.rmtree(tmp_path / "bear.run")
    png_bytes = album.png_bytes

    def press(image: Any) -> bytes:
        _thread.interrupt_main()  # as Ctrl-C does
        monkeypatch.setattr(album, "png_bytes", png_bytes)
        return png_bytes(image)

    monkeypatch.setattr(album, "png_bytes", press)
    with pytest.raises(SystemExit) as stopped:
        run(train.but(validate_every=1))
    monkeypatch.undo()
    assert stopped.value.code == 130
    assert "the same command with --resume continues" in " ".join(capsys.readouterr().out.split())
    assert not (tmp_path / "bear.safetensors").exists()
    run(train.but(resume=True))
    assert Concept.load(tmp_path / "bear.safetensors").hash == whole


def test_ctrl_c_before_the_first_step_promises_no_state(
    train: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def press(*_arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Backbone, "encode_images", press)
    with pytest.raises(SystemExit):
        run(train)
    assert "No step was done, nothing is kept." in capsys.readouterr().out


def captions(folder: Path) -> list[str]:
    """The captions that the listings below a folder give."""
    lines = [line for listing in folder.rglob("metadata.jsonl") for line in listing.read_text().splitlines()]
    return [json.loads(line)["caption"] for line in lines]


def test_generated_regularization_pictures_are_drawn_once(
    train: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generated = train.but(category="bear", regularization="auto", regularization_count=2, steps=1).without("token")
    run(generated)
    folder = tmp_path / "bear.run" / "regularization" / "bear"
    drawn = sorted(folder.rglob("*.png"))
    assert len(drawn) == 2
    assert set(captions(folder)) == {"photo of a bear"}
    before = [path.stat().st_mtime_ns for path in drawn]
    run(generated.but(overwrite=True))
    assert [path.stat().st_mtime_ns for path in sorted(folder.rglob("*.png"))] == before
    assert "regularization-count is 0" in fails(capsys, generated.but(regularization_count=0, overwrite=True))


def test_generated_regularization_pictures_are_drawn_again_for_another_model_or_preset(
    train: Command, other_folder: Path, pictures: Path, tmp_path: Path
) -> None:
    for index in range(3):  # shorter than the caption of the style preset, which the tiny text encoder cuts
        (pictures / f"{index}.txt").write_text("photo of a bear")
    generated = train.but(category="bear", regularization="auto", regularization_count=2, steps=1, overwrite=True)
    generated = generated.without("token")
    run(generated)
    folder = tmp_path / "bear.run" / "regularization" / "bear"
    assert len(list(folder.rglob("*.png"))) == 2
    run(generated.but(model=other_folder))
    assert len({path.read_bytes() for path in folder.rglob("*.png")}) == 4
    run(generated.but(model=other_folder, preset="style"))
    assert set(captions(folder)) == {"photo of a bear", "painting in the style of bear"}


def test_repeated_options_and_a_file_teach_the_same_subjects_together(
    two: Command, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run(two)
    joint = Concept.load("bear-dog.safetensors")
    assert [subject.words for subject in joint.subjects] == ["<bear> teddy bear", "<dog> dog"]
    assert list(joint.tokens) == ["<bear>", "<dog>"]
    listed = [
        {"pictures": str(pictures), "category": "teddy bear", "token": "<bear>"},
        {"pictures": "dogs", "category": "dog", "token": "<dog>", "regularization": "bears"},
    ]
    (tmp_path / "concepts.yaml").write_text(json.dumps(listed))
    from_file = command("train", **two.without("category", "token").options)
    run(from_file.but(concepts="concepts.yaml", out="listed.safetensors", validate_every=3))
    assert Concept.load("listed.safetensors").hash == joint.hash
    assert len(Album(tmp_path / "listed.run").drawn("validation")) == 4


def test_diffusers_list_of_concepts_teaches_with_its_prompts_as_captions(
    train: Command, pictures: Path, regularization: Path, tmp_path: Path
) -> None:
    listed = {
        "instance_prompt": "drawing of a <bear> bear",
        "class_prompt": "drawing of a bear",
        "instance_data_dir": str(pictures),
        "class_data_dir": str(regularization),
    }
    (tmp_path / "concepts_list.json").write_text(json.dumps([listed]))
    command_line = command("train", **train.without("category", "token", "regularization").options)
    run(command_line.but(concepts=tmp_path / "concepts_list.json"))
    (subject,) = Concept.load(tmp_path / "bear.safetensors").subjects
    assert (subject.words, subject.prompts) == ("<bear> bear", ("drawing of a <bear> bear",))
    (record,) = json.loads((tmp_path / "bear.run" / "config.json").read_text())["regularization"]
    expected = Regularization.load(regularization, category="bear", preset=Preset(caption="drawing of a bear"))
    assert (record["source"], record["content"]) == ("bears", expected.hash)


def test_warnings_of_the_library_are_printed_once_each(
    train: Command, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pictures / "film.mp4").write_bytes(b"film")
    (pictures / "0.txt").write_text("a {} " + "red " * 16)
    run(train)
    printed = " ".join(capsys.readouterr().err.split())
    assert printed.count("are not read: 1 .mp4, such as film.mp4") == 1
    assert printed.count("warning: 1 captions are longer than the text encoder reads.") == 1


def test_a_validation_prompt_that_cannot_be_drawn_is_refused_before_any_work(
    train: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    no_work(monkeypatch)
    message = fails(capsys, train.but(validate_every=1, validation_prompt="a <cat>"))
    assert "The validation prompt 'a <cat>' uses the unknown token '<cat>'. Known tokens: <bear>." in message


def test_a_file_of_subjects_excludes_the_options_that_say_the_same(
    two: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "c.yaml"
    assert "leave out pictures, --category and --token" in fails(capsys, two.but(concepts=missing))
    several = command("train", concepts=missing, regularization=["pool", "generated"])
    assert "Write those that differ into the file" in fails(capsys, several)
    assert "no file of subjects" in fails(capsys, command("train", concepts=missing))


def test_each_category_has_its_own_generated_pictures(two: Command, tmp_path: Path) -> None:
    out = tmp_path / "both.safetensors"
    run(two.but(regularization="generated", regularization_count=1, out=out, steps=1))
    drawn = tmp_path / "both.run" / "regularization"
    assert captions(drawn / "teddy-bear") == ["photo of a teddy bear"]
    assert captions(drawn / "dog") == ["photo of a dog"]


def test_what_cannot_be_taught_together_stops_before_pictures_are_drawn(
    two: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    no_work(monkeypatch)
    alike = two.but(token=["<bear>", "<bear>"], regularization="generated", out=tmp_path / "both.safetensors")
    assert "Two subjects are both called '<bear>'" in fails(capsys, alike)


def test_sequential_training_continues_a_concept_and_resumes(
    bear: Path, train: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dog = train.but(category="dog", token="<dog>", start_from=bear, out=tmp_path / "dog.safetensors").without("model")
    run(dog)
    assert "a <bear> teddy bear and a <dog> dog on the beach" in capsys.readouterr().out
    both = Concept.load(tmp_path / "dog.safetensors")
    assert [subject.words for subject in both.subjects] == ["<bear> teddy bear", "<dog> dog"]
    assert both.base == Concept.load(bear).base
    assert torch.equal(both.tokens["<bear>"], Concept.load(bear).tokens["<bear>"])
    shorter = dog.but(out=tmp_path / "shorter.safetensors")
    run(shorter.but(steps=1))
    run(shorter.but(resume=True))
    assert Concept.load(tmp_path / "shorter.safetensors").hash == both.hash


def test_bad_input_to_train_is_named_before_any_work(
    train: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    no_work(monkeypatch)
    (tmp_path / "empty").mkdir()
    assert "holds no pictures" in fails(capsys, train.but(tmp_path / "empty"))
    assert "No pictures were given" in fails(capsys, command("train", **train.options))
    assert "category is empty" in fails(capsys, train.but(category=""))
    assert "Say what the pictures show" in fails(capsys, train.without("category"))
    assert "'bear' is already a word" in fails(capsys, train.but(token="bear"))
    assert "steps is 0" in fails(capsys, train.but(steps=0))
    assert "batch is 0" in fails(capsys, train.but(batch=0))
    assert "Unknown method 'magic'. Known: custom-diffusion" in fails(capsys, train.but(method="magic"))
    assert "There is no model" in fails(capsys, train.but(model=tmp_path / "nowhere"))
    assert "no picture or folder" in fails(capsys, train.but(regularization=tmp_path / "nowhere"))
    assert "no collection to retrieve from" in fails(capsys, train.but(regularization="retrieved"))
    nowhere = train.but(regularization="auto", collection=tmp_path / "nowhere")
    assert "There is no collection in" in fails(capsys, nowhere)
    assert "holdout is 3" in fails(capsys, train.but(holdout=3))
    assert "to resume from" in fails(capsys, train.but(resume=True))
    assert "is a folder" in fails(capsys, train.but(out=tmp_path / "empty"))
    (tmp_path / "bear.safetensors").write_text("mine")
    assert "exists already" in fails(capsys, train)
    assert (tmp_path / "bear.safetensors").read_text() == "mine"


def test_an_existing_run_stops_before_regularization_pictures_are_drawn(
    bear: Path, train: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bear.unlink()
    no_work(monkeypatch)
    assert "holds a run already" in fails(capsys, train.but(regularization="generated"))


def test_large_changes_are_cut_to_low_rank_unless_all_energy_is_asked_for(
    train: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "bear.safetensors"
    run(train)
    dense = Concept.load(file)
    assert {change.rank for change in dense.deltas.values()} == {None}
    monkeypatch.setattr("moongate.compression.LARGE", 1000)
    capsys.readouterr()
    again = train.but(overwrite=True)
    run(again)
    small = Concept.load(file)
    assert all(change.rank for change in small.deltas.values())
    said = " ".join(capsys.readouterr().out.split())
    missed = sum(
        float((change.full() - dense.deltas[name].full()).square().sum()) for name, change in small.deltas.items()
    )
    total = sum(float(change.full().square().sum()) for change in dense.deltas.values())
    assert f"{(missed / total) ** 0.5:.1%} of the change was cut away" in said
    run(again.but(energy=1))
    assert Concept.load(file).hash == dense.hash
    run(again.but(energy=0.3))
    assert Concept.load(file).record["energy"] == 0.3
    assert "energy is 2.0; it must be above 0" in fails(capsys, again.but(energy=2))


def test_the_rate_the_size_and_the_first_words_are_recorded(train: Command, tmp_path: Path, tiny: Backbone) -> None:
    options = {"learning_rate": 1e-30, "resolution": 32, "initializer_token": "red", "steps": 1, "dtype": "float32"}
    run(train.but(**options))
    concept = Concept.load(tmp_path / "bear.safetensors")
    chosen = ("learning_rate", "resolution_px", "initializer_token")
    assert [concept.record[key] for key in chosen] == [1e-30, 32, ["red"]]
    (word,) = tiny.tokenizer("red", add_special_tokens=False).input_ids
    assert torch.equal(concept.tokens["<bear>"], tiny.token_row(word)), "nearly no rate leaves it where it began"


def test_the_best_of_the_kept_concepts_is_written_when_asked(
    train: Command,
    tmp_path: Path,
    regularization: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, run_folder = tmp_path / "bear.safetensors", tmp_path / "bear.run"
    run(train.but(holdout=1, save_every=1, keep_best=True))
    log = [json.loads(line) for line in (run_folder / "log.jsonl").read_text().splitlines()]
    best = min(log, key=lambda line: line["held_out_loss"])
    kept = Concept.load(run_folder / "concepts" / f"{best['index']:06d}.safetensors")
    assert Concept.load(out).hash == kept.hash
    said = " ".join(capsys.readouterr().out.split())
    assert f"lowest loss of the held-out pictures is {best['held_out_loss']:.4f}, at step {best['index']}" in said
    losses = iter([0.1, 0.2])
    monkeypatch.setattr(Judge, "loss", lambda _self: next(losses))
    run(train.but(holdout=regularization, save_every=2, overwrite=True))
    assert Concept.load(out).record["steps"] == 3, "the last step, unless the best is asked for"
    said = " ".join(capsys.readouterr().out.split())
    assert "is 0.1000, at step 2; that of the last step is 0.2000. The better one is" in said
    assert "--resume --keep-best writes it" in said


def test_held_out_pictures_that_judge_nothing_are_refused(
    train: Command, two: Command, regularization: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    no_work(monkeypatch)
    assert "would be ignored: the pictures of a folder judge" in fails(capsys, train.but(holdout=regularization))
    assert "is neither a number" in fails(capsys, train.but(holdout="some"))
    assert "is neither a number" in fails(capsys, train.but(holdout="\u00b2"))
    assert "one number or folder for each" in fails(capsys, two.but(holdout=regularization, save_every=1))
    assert "keep_best needs held-out pictures" in fails(capsys, train.but(save_every=1, keep_best=True))


def test_regularization_pictures_are_refused_for_a_method_that_uses_none(
    regularization: Path, train: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    inversion = train.but(regularization=regularization, method="textual-inversion")
    assert f"--regularization {regularization} would be ignored: textual-inversion uses none" in fails(
        capsys, inversion
    )


def test_options_of_retrieval_are_refused_where_nothing_is_retrieved(
    collection: Path, train: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    ignored = f"--collection {collection} would be ignored"
    assert ignored in fails(capsys, train.but(collection=collection))
    assert "--threshold 0.5 would be ignored" in fails(capsys, train.but(regularization="none", threshold=0.5))
    inversion = train.but(regularization="auto", method="textual-inversion", collection=collection)
    assert ignored in fails(capsys, inversion)


def test_train_retrieves_from_a_collection_once(
    collection: Path, train: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    four = train.but(regularization="auto", collection=collection, threshold=-1, regularization_count=4)
    run(four)
    folder = tmp_path / "bear.run" / "regularization" / "teddy-bear" / "retrieved"
    facts = json.loads((folder / "retrieval.json").read_text())
    assert facts["query"] == "photo of a teddy bear"
    assert facts["found"] == 4
    config = json.loads((tmp_path / "bear.run" / "config.json").read_text())
    assert config["regularization"][0]["pictures"] == 4
    before = (folder / "0000.png").stat().st_mtime_ns
    run(four.but(overwrite=True))
    assert (folder / "0000.png").stat().st_mtime_ns == before
    assert "No caption reaches the similarity 1.0" in fails(capsys, four.but(threshold=1, overwrite=True))


def test_a_collection_of_another_model_is_refused_by_train(
    collection: Path, train: Command, other_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = fails(capsys, train.but(model=other_folder, regularization="retrieved", collection=collection))
    assert "was made with the text encoder" in message
    assert f"not with '{other_folder}'" in message


def test_regularization_none_trains_without(train: Command, tmp_path: Path) -> None:
    run(train.but(regularization="none"))
    assert Concept.load(tmp_path / "bear.safetensors").method == "custom-diffusion-without-regularization"


def test_train_warns_of_poor_pictures_and_holds_some_out(
    train: Command, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(pictures / "0.png", pictures / "1a.png")
    run(train.but(holdout=1))
    assert "warning: 1a.png shows the same as 0.png" in capsys.readouterr().err
    assert Concept.load(tmp_path / "bear.safetensors").record["held_out"] == ["2.png"]


@pytest.mark.parametrize("method", ["dreambooth", "fine-tune-all", "textual-inversion"])
def test_the_baselines_train_by_name(
    train: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str
) -> None:
    file = tmp_path / "bear.safetensors"
    train = train.without("regularization") if method == "textual-inversion" else train
    run(train.but(method=method, steps=1, batch=1))
    concept = Concept.load(file)
    assert concept.method == method
    kinds = {tuple(change.full().shape[2:]) for change in concept.deltas.values()}
    assert kinds == (set() if method == "textual-inversion" else {(), (1, 1), (3, 3)})
    said = " ".join(capsys.readouterr().out.split())
    assert ("photo of a <bear> on the beach" in said) == (method == "textual-inversion")
    run(command("generate", "a <bear>", concept=file, count=1, steps=1, out=tmp_path / "drawn"))


def test_dreambooth_has_its_regularization_pictures_generated(train: Command, collection: Path, tmp_path: Path) -> None:
    dreambooth = train.without("regularization").but(method="dreambooth", steps=1, batch=1, regularization_count=2)
    run(dreambooth)
    drawn = tmp_path / "bear.run" / "regularization" / "teddy-bear"
    assert len(list(drawn.rglob("*.png"))) == 2


def test_the_command_offers_the_librarys_options_with_their_types_and_defaults() -> None:
    """`Train` repeats them, because importing `TrainOptions` for `--help` would load PyTorch."""
    library = {field.name: field.default for field in dataclasses.fields(TrainOptions)}
    offered = {field.name: field.default for field in dataclasses.fields(Train)}
    named_otherwise = {"run_folder", "resolution_px", "look_steps", "shards"}  # --run, --validate-every, ...
    assert set(library) - set(offered) == {"cache", "checkpoint_steps", "report_steps", *named_otherwise}
    shared = set(library) & set(offered)
    assert {name: offered[name] for name in shared} == {name: library[name] for name in shared}
    types, expected = get_type_hints(Train), get_type_hints(TrainOptions)
    assert {name: types[name] for name in shared} == {name: expected[name] for name in shared}


def test_a_file_that_appears_during_the_training_stays_and_the_training_is_kept(
    train: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bear.safetensors"
    png_bytes = album.png_bytes

    def appear(image: Any) -> bytes:
        out.write_bytes(b"another's")
        return png_bytes(image)

    monkeypatch.setattr(album, "png_bytes", appear)
    message = fails(capsys, train.but(validate_every=1))
    monkeypatch.undo()
    assert "appeared during the training and is not replaced" in message
    assert out.read_bytes() == b"another's"
    assert "exists already" in fails(capsys, train.but(resume=True))
    run(train.but(resume=True, run=tmp_path / "bear.run", out=tmp_path / "other.safetensors"))
    again = train.but(resume=True, run=tmp_path / "bear.run", out=tmp_path / "other.safetensors")
    run(again)  # its own result may be replaced
    assert Concept.load(tmp_path / "other.safetensors").tokens
    assert out.read_bytes() == b"another's"


def test_a_category_that_is_a_path_writes_and_deletes_nothing_there(train: Command, tmp_path: Path) -> None:
    write_pictures(tmp_path / "mine", count=3, seed=5)
    before = {path: path.read_bytes() for path in (tmp_path / "mine").iterdir()}
    for category in (str(tmp_path / "mine"), "../mine"):
        run(train.but(category=category, regularization="generated", regularization_count=1, overwrite=True))
    assert {path: path.read_bytes() for path in (tmp_path / "mine").iterdir()} == before


@pytest.mark.parametrize("token", ["<bear->", "<-bear>", "<my<bear>", "<a>b>"])
def test_a_token_that_could_not_be_read_back_is_refused_before_any_work(
    train: Command, token: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    no_work(monkeypatch)
    assert "could not be read back from a file" in fails(capsys, train.but(token=token))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 10**9}, "batch is 1000000000; it is at most 4096."),
        ({"threshold": "nan", "regularization": "retrieved"}, "threshold is nan; a similarity is between -1 and 1"),
        ({"validation_prompt": "a dog"}, "--validation-prompt would be ignored. Say with --validate-every how often"),
        ({"category": "<rex> dog", "token": "<rex>"}, "The category '<rex> dog' holds the token '<rex>'."),
        ({"method": "dreambooht"}, "Unknown method 'dreambooht'. Known: custom-diffusion, "),
        ({"regularization": "no-folder"}, "There is no picture or folder no-folder to regularize with."),
        ({"regularization_count": 0}, "regularization-count is 0; it must be at least 1."),
        ({"holdout": "no-folder"}, "--holdout no-folder is neither a number of pictures nor a folder."),
    ],
)
def test_options_are_checked_before_a_model_is_loaded(
    options: dict[str, object], message: str, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = command("train", pictures, category="dog", model="nothing")
    assert message in fails(capsys, train.but(**options))
