"""The command `convert`, foreign files given to other commands, and publishing."""

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import LocalTokenNotFoundError, OfflineModeIsEnabled
from PIL import Image
from safetensors.torch import load_file, save_file

from command_line import command, fails, run
from making import make_concept
from moongate import interop
from moongate.backbone import Backbone
from moongate.concept import Concept


@pytest.fixture
def concept(tiny: Backbone, tmp_path: Path) -> Path:
    return make_concept(tiny).save(tmp_path / "bear.safetensors")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write_compressed(concept: Path, out: Path) -> None:
    """Write a concept as the compressed `delta.bin` of the paper's code."""
    source = Concept.load(concept)
    factors = {name.removeprefix("unet."): {"u": c.up, "v": c.down} for name, c in source.deltas.items()}
    torch.save({"unet": factors, "modifier_token": dict(source.tokens)}, out)


def test_convert_there_and_back_gives_the_same_concept(
    concept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("convert", concept, "--to", "kohya", "--out", tmp_path / "bear-lora")
    printed = " ".join(capsys.readouterr().out.split())
    kilobytes = (tmp_path / "bear-lora" / "bear-lora.safetensors").stat().st_size / 1e3
    assert f"Wrote bear-lora.safetensors ({kilobytes:.1f} kB), bear.safetensors" in printed
    run("convert", tmp_path / "bear-lora", "--to", "moongate", "--out", tmp_path / "again.safetensors")
    assert Concept.load(tmp_path / "again.safetensors").hash == Concept.load(concept).hash


def test_a_rank_that_would_be_ignored_is_refused(
    concept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for to in ("adobe", "moongate"):
        out = tmp_path / f"{to}.bin"
        message = fails(capsys, "convert", concept, "--to", to, "--out", out, "--rank", 2)
        assert "--rank cuts changes for" in message
        assert not out.exists()
    nothing = ["--to", "lora", "--out", tmp_path / "lora", "--rank", 0]
    assert "The rank is 0; it must be at least 1" in fails(capsys, "convert", tmp_path / "nowhere", *nothing)


def test_the_model_card_of_a_folder_shows_pictures_when_a_base_is_given(
    concept: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "bear-model"
    options = ["--model", tiny_folder, "--device", "cpu", "--license", "cc0-1.0", "--pictures", 2]
    run("convert", concept, "--to", "diffusers", "--out", out, *options)
    card = (out / "README.md").read_text()
    for part in ("license: cc0-1.0", "`<bear> bear`", "`photo of a <bear> bear`", "Base: model", "_pipeline=pipeline"):
        assert part in card
    assert str(tiny_folder) not in card
    assert "![photo of a \\<bear\\> bear on the beach](sample-2.png)" in card
    with Image.open(out / "sample-2.png") as picture:
        assert picture.size == (64, 64)
    assert interop.read(out, base=Backbone.load(tiny_folder, device="cpu")).format == "diffusers"


def test_the_base_is_taken_from_the_concept_for_full_weights(concept: Path, tiny_folder: Path, tmp_path: Path) -> None:
    run("convert", concept, "--to", "adobe", "--out", tmp_path / "delta.bin", "--device", "cpu")
    names = ["--token", "<teddy>", "--category", "teddy bear"]
    named = ["--to", "moongate", "--out", tmp_path / "teddy.safetensors", *names]
    run("convert", tmp_path / "delta.bin", "--model", tiny_folder, "--device", "cpu", *named)
    teddy = Concept.load(tmp_path / "teddy.safetensors")
    assert teddy.subjects[0].words == "<teddy> teddy bear"
    assert teddy.base == str(tiny_folder)


def test_full_weights_are_read_with_the_base_that_they_name(concept: Path, tmp_path: Path) -> None:
    run("convert", concept, "--to", "diffusers", "--out", tmp_path / "full", "--pictures", 0, "--device", "cpu")
    run("convert", tmp_path / "full", "--to", "moongate", "--out", tmp_path / "a.safetensors", "--device", "cpu")
    run("compress", tmp_path / "full", "--energy", 1, "--out", tmp_path / "b.safetensors", "--device", "cpu")
    for name, change in Concept.load(concept).deltas.items():
        for again in ("a", "b"):
            read = Concept.load(tmp_path / f"{again}.safetensors").deltas[name]
            assert torch.allclose(read.full(), change.full(), atol=1e-6)


def test_bad_input_to_convert_is_named_and_nothing_is_written(
    concept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert "no format 'onnx'. Known: moongate" in fails(capsys, "convert", concept, "--to", "onnx", "--out", out)
    assert "is a folder" in fails(capsys, "convert", concept, "--to", "moongate", "--out", tmp_path)
    assert "no concept file" in fails(capsys, "convert", tmp_path / "no", "--to", "lora", "--out", out)
    assert "is one file" in fails(capsys, "convert", concept, "--to", "adobe", "--out", out, "--push", "you/bear")
    run("convert", concept, "--to", "adobe", "--out", tmp_path / "delta.bin", "--device", "cpu")
    message = fails(capsys, "convert", tmp_path / "delta.bin", "--to", "moongate", "--out", tmp_path / "c.safetensors")
    assert "stores full weights" in message
    assert "--model" in message
    assert not out.exists()


def test_new_names_are_checked_before_a_base_is_loaded(
    concept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    convert = command("convert", concept, to="adobe", out=out, model=tmp_path / "no-model")
    assert "2 token names are given, but the file has 1 tokens" in fails(capsys, convert.but(token=("<a>", "<b>")))
    assert "'rex' is not one word in angle brackets" in fails(capsys, convert.but(token="rex"))
    assert "2 categories are given for 1 subjects" in fails(capsys, convert.but(category=("dog", "cat")))
    assert "no-model" in fails(capsys, convert.but(token="<rex>", category="dog"))


def test_other_commands_read_foreign_files(
    concept: Path, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_compressed(concept, tmp_path / "delta.bin")
    run("convert", concept, "--to", "lora", "--out", tmp_path / "lora")
    capsys.readouterr()
    run("info", tmp_path / "delta.bin", "--json")
    facts = json.loads(capsys.readouterr().out)
    assert (facts["format"], facts["base"], facts["fingerprint"]) == (
        "`delta.bin` of the paper's diffusers code",
        "",
        "unknown",
    )
    drawing = ["--count", 1, "--steps", 1, "--device", "cpu", "--out", tmp_path / "drawn"]
    nameless = fails(capsys, "generate", "a <bear> bear", "--concept", tmp_path / "delta.bin", *drawing)
    assert "does not say which model it belongs to. Name it with --model" in nameless
    run("generate", "a <bear> bear", "--concept", tmp_path / "delta.bin", "--model", tiny_folder, *drawing)
    run("generate", "a <bear> bear", "--concept", tmp_path / "lora", *drawing, "--overwrite")
    run("merge", tmp_path / "lora", "--out", tmp_path / "clean.safetensors", "--device", "cpu")
    clean = Concept.load(tmp_path / "clean.safetensors")
    assert clean.subjects[0].words == "<bear> bear"
    assert clean.fingerprint == Concept.load(concept).fingerprint


def test_info_counts_full_weights_without_their_model(
    concept: Path, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("convert", concept, "--to", "adobe", "--out", tmp_path / "delta.bin", "--device", "cpu")
    capsys.readouterr()
    run("info", tmp_path / "delta.bin", "--json")
    facts = json.loads(capsys.readouterr().out)
    assert (facts["base"], facts["tokens"]) == ("", ["<bear>"])
    assert facts["full_weights"] == 14
    assert "--model" in facts["notes"][-1]
    run("info", tmp_path / "delta.bin", "--model", tiny_folder, "--json")
    facts = json.loads(capsys.readouterr().out)
    assert (facts["changed_weights"], facts["low_rank"]) == (14, 0)


def test_training_goes_on_from_foreign_files(concept: Path, tiny_folder: Path, pictures: Path, tmp_path: Path) -> None:
    run("convert", concept, "--to", "adobe", "--out", tmp_path / "delta.bin", "--device", "cpu")
    command = ["train", pictures, "--category", "dog", "--token", "<dog>", "--regularization", "none", "--steps", 1]
    command += ["--model", tiny_folder, "--device", "cpu", "--out", tmp_path / "both.safetensors"]
    run(*command, "--start-from", tmp_path / "delta.bin")
    assert list(Concept.load(tmp_path / "both.safetensors").tokens) == ["<bear>", "<dog>"]


def test_compress_and_analyze_read_foreign_files(
    concept: Path, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("convert", concept, "--to", "adobe", "--out", tmp_path / "delta.bin", "--device", "cpu")
    run("convert", concept, "--to", "lora", "--out", tmp_path / "lora")
    base = ["--model", tiny_folder, "--device", "cpu"]
    for name, source, more in (
        ("a.safetensors", tmp_path / "lora", []),
        ("b.safetensors", tmp_path / "delta.bin", base),
    ):
        run("compress", source, *more, "--energy", 1, "--out", tmp_path / name)
        again, before = Concept.load(tmp_path / name), Concept.load(concept)
        for layer, change in again.deltas.items():
            assert torch.allclose(change.full(), before.deltas[layer].full(), atol=1e-6)
    assert "stores full weights" in fails(
        capsys, "compress", tmp_path / "delta.bin", "--out", tmp_path / "c.safetensors"
    )
    run("analyze", "spectrum", tmp_path / "lora", "--out", tmp_path / "found")
    assert len(json.loads((tmp_path / "found" / "spectrum.json").read_text())) == 14
    run("analyze", "weights", tmp_path / "delta.bin", *base, "--out", tmp_path / "found")
    assert json.loads((tmp_path / "found" / "weights.json").read_text())[0]["changed"] == 14
    nameless = fails(capsys, "analyze", "weights", tmp_path / "delta.bin", "--out", tmp_path / "found")
    assert "does not say which model it belongs to. Name it with --model" in nameless
    run("analyze", "attention", tmp_path / "delta.bin", *base, "--steps", 1, "--out", tmp_path / "found")
    words = json.loads((tmp_path / "found" / "attention.json").read_text())[0]["words"]
    assert [word["word"] for word in words] == ["photo", "of", "a", "<bear>"]


def test_a_file_without_categories_is_not_judged(
    concept: Path, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_compressed(concept, tmp_path / "delta.bin")
    options = ["--model", tiny_folder, "--device", "cpu", "--out", tmp_path / "judged"]
    message = fails(capsys, "evaluate", tmp_path / "delta.bin", *options)
    assert "delta.bin does not name the categories of its subjects" in message
    assert "moongate convert FILE --to moongate --category WORD" in message
    assert not (tmp_path / "judged").exists()


def test_a_word_of_several_vectors_is_drawn_with_all_of_them(
    concept: Path, tiny: Backbone, tiny_folder: Path, tmp_path: Path
) -> None:
    """Whether the prompt names the word once, as in other programs, or writes its tokens out."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(2, sum(tiny.token_widths), generator=generator)
    run("convert", concept, "--to", "lora", "--out", tmp_path / "both")
    (tmp_path / "both" / "<bear>.safetensors").unlink()
    save_file({"emb_params": rows}, tmp_path / "both" / "bear.safetensors")
    weights = tmp_path / "both" / "pytorch_lora_weights.safetensors"
    save_file(load_file(weights), weights)  # without the header, as another program writes it
    pictures = []
    for name, prompt in (("a", "photo of a <bear> bear"), ("b", "photo of a <bear> <bear-2> bear")):
        options = ["--count", 1, "--steps", 1, "--device", "cpu", "--model", tiny_folder, "--out", tmp_path / name]
        run("generate", prompt, "--concept", tmp_path / "both", *options)
        with Image.open(next(file for file in (tmp_path / name).glob("*.png") if "sheet" not in file.name)) as picture:
            pictures.append(picture.tobytes())
    assert pictures[0] == pictures[1]


# --- publishing -------------------------------------------------------------------------------------------------------


def test_push_uploads_the_folder(
    concept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = []

    class Made(str):
        repo_id = "you/bear"

    def create(_self: HfApi, repo: str, **_options: object) -> Made:
        calls.append(("create", repo))
        return Made("https://hub.example/you/bear")

    def upload(_self: HfApi, *, repo_id: str, folder_path: Path, **_options: object) -> None:
        calls.append(("upload", repo_id, sorted(file.name for file in folder_path.iterdir())))

    monkeypatch.setattr(HfApi, "whoami", lambda _self: {"name": "you"})
    monkeypatch.setattr(HfApi, "create_repo", create)
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    run("convert", concept, "--to", "lora", "--out", tmp_path / "bear", "--push", "you/bear")
    files = ["<bear>.safetensors", "README.md", "pytorch_lora_weights.safetensors"]
    assert calls == [("create", "you/bear"), ("upload", "you/bear", files)]
    assert "Uploaded to https://hub.example/you/bear." in capsys.readouterr().out


@pytest.mark.parametrize(
    "error",
    [OfflineModeIsEnabled("offline mode is on"), LocalTokenNotFoundError("no token found"), OSError("no route")],
)
def test_push_fails_before_anything_is_written(
    error: Exception, concept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def whoami(_self: HfApi) -> None:
        raise error

    monkeypatch.setattr(HfApi, "whoami", whoami)
    message = fails(capsys, "convert", concept, "--to", "lora", "--out", tmp_path / "bear", "--push", "you/bear")
    assert f"Nothing was uploaded to 'you/bear': {error}." in message
    assert "hf auth login" in message
    assert not (tmp_path / "bear").exists()


def test_a_hub_that_cannot_be_reached_is_named(
    concept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Through the client itself, at an address of this machine where nobody listens."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", "hf_nobody")
    message = fails(capsys, "convert", concept, "--to", "lora", "--out", tmp_path / "bear", "--push", "you/bear")
    assert "Nothing was uploaded to 'you/bear'" in message
    odd = fails(capsys, "convert", concept, "--to", "lora", "--out", tmp_path / "bear", "--push", "a/b/c")
    assert "'a/b/c'" in odd
