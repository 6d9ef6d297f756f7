import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("module", ["recipe.pretrain.prepare", "recipe.corpus.guard"])
def test_a_corpus_that_is_not_there_is_one_sentence_and_exit_code_2(module: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", module, "--corpus", str(tmp_path)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "error: " in ended.stderr
    assert str(tmp_path) in ended.stderr
    assert "Traceback" not in ended.stderr
