import contextlib
import json
import os
import shutil
import signal
import threading
from pathlib import Path

import pytest
import torch

from moongate.errors import OptionError
from moongate.training.runs import Run, check_free, check_run, interrupt_after_step, seeded

CONFIG = {"seed": 0, "steps": 4, "versions": {"torch": "2"}}


def test_a_run_without_a_folder_keeps_no_records() -> None:
    run = Run.begin(None, CONFIG, resume=False)
    run.log({"loss": 1.0})
    run.save({"step": 1})
    assert run.restore() is None
    assert run.saved_state is None


def test_a_resumed_run_restores_its_state_and_cuts_its_log_to_it(tmp_path: Path) -> None:
    run = Run.begin(tmp_path, CONFIG, resume=False)
    for index in range(1, 4):
        run.log({"index": index})
        if index == 2:
            run.save({"step": 2, "weights": torch.ones(2)})
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"inde')
    again = Run.begin(tmp_path, CONFIG, resume=True)
    state = again.restore()
    assert state["step"] == 2
    assert torch.equal(state["weights"], torch.ones(2))
    assert [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [
        {"index": 1},
        {"index": 2},
    ]
    assert again.saved_state == tmp_path / "state.pt"


def test_a_log_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    run = Run.begin(tmp_path / "run", CONFIG, resume=False)
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(OptionError, match=r"log.jsonl could not be written \(No such file or directory\)"):
        run.log({"index": 1})


def test_a_new_run_removes_the_records_of_an_earlier_one(tmp_path: Path) -> None:
    run = Run.begin(tmp_path, CONFIG, resume=False)
    run.log({"index": 1})
    run.save({"step": 1})
    run = Run.begin(tmp_path, CONFIG | {"seed": 1}, resume=False)
    assert run.restore() is None
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == 1


def test_a_folder_that_holds_another_run_or_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"holds no state.pt to resume from. Start without --resume"):
        check_free(tmp_path, resume=True, overwrite=False)
    check_free(tmp_path, resume=False, overwrite=False)
    Run.begin(tmp_path, CONFIG, resume=False).save({"step": 1})
    with pytest.raises(OptionError, match=r"holds a run already. Continue it .--resume."):
        check_free(tmp_path, resume=False, overwrite=False)
    check_free(tmp_path, resume=False, overwrite=True)
    check_free(tmp_path, resume=True, overwrite=False)


@pytest.mark.parametrize("name", ["log.jsonl", "concepts/000100.safetensors"])
def test_a_folder_with_a_log_or_kept_concepts_is_not_free_and_loses_no_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("of another")
    with pytest.raises(OptionError, match=r"holds a run already. Continue it .--resume., replace it .--overwrite."):
        check_run(tmp_path, CONFIG, resume=False, overwrite=False)
    with pytest.raises(OptionError, match=r"config.json cannot be read.*Start again with --overwrite"):
        check_run(tmp_path, CONFIG, resume=True, overwrite=False)
    assert (tmp_path / name).read_text() == "of another"


def test_only_files_that_are_named_as_kept_concepts_are_removed(tmp_path: Path) -> None:
    (tmp_path / "concepts").mkdir()
    for name in ("000050", "7", "2024-trip"):
        (tmp_path / "concepts" / f"{name}.safetensors").touch()
    check_run(tmp_path, CONFIG, resume=False, overwrite=True)
    Run.begin(tmp_path, CONFIG, resume=False)
    assert {path.stem for path in (tmp_path / "concepts").iterdir()} == {"7", "2024-trip"}


def test_a_run_that_was_killed_before_its_first_state_is_resumed_from_its_beginning(tmp_path: Path) -> None:
    Run.begin(tmp_path, CONFIG, resume=False).log({"index": 1})
    with pytest.raises(OptionError, match="was started with seed = 0, not 1"):
        check_run(tmp_path, CONFIG | {"seed": 1}, resume=True, overwrite=False)
    check_run(tmp_path, CONFIG, resume=True, overwrite=False)
    run = Run.begin(tmp_path, CONFIG, resume=True)
    assert run.restore(steps=4) is None
    run.log({"index": 1})
    assert (tmp_path / "log.jsonl").read_text() == '{"index": 1}\n'


def test_a_resumed_run_may_differ_in_steps_and_versions_only(tmp_path: Path) -> None:
    Run.begin(tmp_path, CONFIG, resume=False).save({"step": 1})
    check_run(tmp_path, CONFIG | {"steps": 9, "versions": {}}, resume=True, overwrite=False)
    with pytest.raises(OptionError, match="was started with seed = 0, not 1"):
        check_run(tmp_path, CONFIG | {"seed": 1}, resume=True, overwrite=False)
    with pytest.raises(OptionError, match="was started with started_from = None, not 'abc'"):
        check_run(tmp_path, CONFIG | {"started_from": "abc"}, resume=True, overwrite=False)


@pytest.mark.parametrize(("name", "content"), [("config.json", b"{torn"), ("config.json", b"3"), ("state.pt", b"torn")])
def test_a_damaged_record_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    run = Run.begin(tmp_path, CONFIG, resume=False)
    run.log({"index": 1})
    run.save({"step": 1})
    (tmp_path / name).write_bytes(content)

    def resume() -> None:
        check_run(tmp_path, CONFIG, resume=True, overwrite=False)
        Run.begin(tmp_path, CONFIG, resume=True).restore()

    with pytest.raises(OptionError, match=f"{name} cannot be read.*Start again with --overwrite"):
        resume()


def test_random_numbers_depend_on_the_seed_and_the_label_alone() -> None:
    draws = [
        torch.rand(3, generator=seeded(*key)).tolist() for key in ((0, "a"), (0, "a"), (0, "b"), (1, "a"), (0, "a", 1))
    ]
    assert draws[0] == draws[1]
    assert len({tuple(draw) for draw in draws}) == 4
    # The numbers behind every published concept: they must stay the same.
    assert torch.randint(0, 1000, (3,), generator=seeded(0, "noise", 5)).tolist() == [60, 255, 924]


def test_the_first_interrupt_waits_for_the_step_and_the_second_does_not() -> None:
    before = signal.getsignal(signal.SIGINT)
    with interrupt_after_step() as interrupted:
        assert not interrupted()
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupted()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == before


def test_a_handler_that_python_did_not_install_does_not_end_a_finished_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """For such a handler `signal.signal` returns None, and takes none back."""
    real, before = signal.signal, {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.setattr(signal, "signal", lambda number, handler: (real(number, handler), None)[1])
    try:
        with interrupt_after_step():
            pass
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        for number, handler in before.items():
            real(number, handler)


def test_outside_the_main_thread_interrupts_are_left_alone() -> None:
    answers: list[bool] = []

    def work() -> None:
        with interrupt_after_step() as interrupted:
            answers.append(interrupted())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert answers == [False]


def test_a_state_of_another_run_is_refused(tmp_path: Path) -> None:
    Run.begin(tmp_path, CONFIG | {"seed": 1}, resume=False).save({"step": 1})
    (tmp_path / "log.jsonl").write_text("{}\n")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    check_run(tmp_path, CONFIG, resume=True, overwrite=False)
    with pytest.raises(OptionError, match=r"the folder holds parts of two runs. Start again with --overwrite"):
        Run.begin(tmp_path, CONFIG, resume=True).restore()


def test_fewer_steps_than_are_done_are_refused(tmp_path: Path) -> None:
    run = Run.begin(tmp_path, CONFIG, resume=False)
    run.log({"index": 1})
    run.save({"step": 12})
    with pytest.raises(OptionError, match=r"has done 12 steps already, which is more than --steps 3"):
        Run.begin(tmp_path, CONFIG | {"steps": 3}, resume=True).restore(steps=3)
    assert json.loads((tmp_path / "config.json").read_text()) == CONFIG, "a refused run changes no record"
    Run.begin(tmp_path, CONFIG | {"steps": 20}, resume=True).restore(steps=20)
    assert json.loads((tmp_path / "config.json").read_text())["steps"] == 20


def test_a_state_cut_or_altered_anywhere_is_refused_or_read_the_same(tmp_path: Path) -> None:
    run = Run.begin(tmp_path, CONFIG, resume=False)
    run.log({"index": 1})
    weights = torch.randn(500)
    run.save({"step": 1, "weights": weights})
    whole = (tmp_path / "state.pt").read_bytes()
    generator, read = torch.Generator().manual_seed(0), 0
    assert torch.equal(Run.begin(tmp_path, CONFIG, resume=True).restore()["weights"], weights)
    for trial in range(80):
        place = int(torch.randint(len(whole), (1,), generator=generator))
        damaged = bytearray(whole)
        damaged[place] ^= 1 << trial % 8
        (tmp_path / "state.pt").write_bytes(damaged[:place] if trial % 3 == 0 else damaged)
        with contextlib.suppress(OptionError):
            state = Run.begin(tmp_path, CONFIG, resume=True).restore()
            assert torch.equal(state["weights"], weights)
            read += 1
    assert read < 40, "nothing that was cut can be read, nor most of what was altered"


@pytest.mark.parametrize(("name", "content"), [("config.json", b"\xff\xfe"), ("log.jsonl", b"\xff\xfe\n")])
def test_a_record_in_another_encoding_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    run = Run.begin(tmp_path, CONFIG, resume=False)
    run.log({"index": 1})
    run.save({"step": 1})
    (tmp_path / name).write_bytes(content)
    with pytest.raises(OptionError, match=f"{name} cannot be read.*Start again with --overwrite"):
        check_run(tmp_path, CONFIG, resume=True, overwrite=False) or Run.begin(tmp_path, CONFIG, resume=True).restore()


def test_sigterm_waits_for_the_step_too() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with interrupt_after_step() as interrupted:
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupted()
    assert signal.getsignal(signal.SIGTERM) == before


def test_of_long_settings_the_error_names_the_part_that_differs(tmp_path: Path) -> None:
    captions = [f"photo of a <rex> dog in place {number}" for number in range(100)]
    subjects = [{"token": "<rex>", "captions": captions}, {"token": "<bear>", "captions": captions}]
    Run.begin(tmp_path, CONFIG | {"subjects": subjects}, resume=False).save({"step": 1})
    other = json.loads(json.dumps(subjects))
    other[1]["captions"][2] = "a dog"
    with pytest.raises(OptionError, match=r"with subjects.2.captions.3 = '.* place 2', not 'a dog'. Resume") as raised:
        check_run(tmp_path, CONFIG | {"subjects": other}, resume=True, overwrite=False)
    assert len(str(raised.value)) < 400
    with pytest.raises(OptionError, match=r"with subjects = \[{'token': '<rex>'.* \.\.\., not \[{") as raised:
        check_run(tmp_path, CONFIG | {"subjects": subjects[:1]}, resume=True, overwrite=False)
    assert len(str(raised.value)) < 600
