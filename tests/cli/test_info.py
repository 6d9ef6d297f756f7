import json
from pathlib import Path

import pytest

from command_line import command, run


def test_info_prints_what_is_in_the_file(bear: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    run(command("info", bear, json=True))
    facts = json.loads(capsys.readouterr().out)
    assert facts["tokens"] == ["<bear>"]
    assert facts["class words"] == ["teddy bear"]
    assert facts["prompts"] == ["photo of a <bear> teddy bear"]
    assert facts["method"] == "custom-diffusion"
    assert facts["layers"].startswith("14 weights")
    assert {"base", "fingerprint", "size", "steps", "seed"} <= set(facts)
    run(command("info", bear))
    assert "<bear>" in capsys.readouterr().out
