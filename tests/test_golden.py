"""What training, merging, compression and sampling give on the tiny backbones, against what is kept in `golden/`.

On the kind of processor that made the golden file the tensors and pixels are equal bit for bit; on others they are
close. A change that alters the numbers on purpose writes the file anew with `python tests/test_golden.py` and its
commit says why.
"""

import hashlib
import json
import platform
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import make_tiny_model
from moongate.backbone import Backbone
from moongate.compression import compress
from moongate.concept import Concept
from moongate.data import Regularization, Subject
from moongate.merging import MergeOptions, merge
from moongate.sampling import SampleOptions, sample
from moongate.training import TrainOptions, train
from moongate.training.method import METHODS

GOLDEN = Path(__file__).parent / "golden"
FAMILIES = ("pocket", "sd1", "sdxl")
CLOSE = 2e-3
"""Largest error on another kind of processor, relative to the norm of the tensor."""
CLOSE_MERGED = 0.3
"""The same for merged weights: the tiny text features are nearly collinear, which amplifies rounding in them."""
PROMPT = "photo of a <bear> bear on the beach"


def machine() -> str:
    """Return what the last bits of floating-point results depend on: the matrix libraries differ by processor."""
    listed = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = re.findall(r"^model name\s*: (.*)$", listed, re.MULTILINE) or [platform.processor()]
    return f"{names[0]}, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"


def subject(token: str, category: str, seed: int) -> Subject:
    rng = np.random.default_rng(seed)
    return Subject(
        pictures=tuple(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8) for _ in range(3)),
        captions=(f"photo of a {token} {category}",) * 3,
        category=category,
        token=token,
    )


def prior(category: str, seed: int) -> Regularization:
    rng = np.random.default_rng(seed)
    return Regularization(
        pictures=tuple(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8) for _ in range(4)),
        captions=tuple(f"photo of a {color} {category}" for color in ("red", "small", "dog", "cat")),
    )


def tensors_of(name: str, concept: Concept) -> dict[str, torch.Tensor]:
    found = {f"{name}/{token}": row for token, row in concept.tokens.items()}
    for layer, change in concept.deltas.items():
        found |= {f"{name}/{layer}/{suffix}": tensor for suffix, tensor in change.tensors().items()}
    return {key: tensor.detach().float().contiguous().clone() for key, tensor in found.items()}


def computed(family: str) -> dict[str, torch.Tensor]:
    """Train two subjects apart and together, merge, compress and draw, all with fixed seeds."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        backbone = Backbone.load(make_tiny_model(Path(folder) / "model", seed=0, family=family), device="cpu")
    bear, dog = subject("<bear>", "bear", 0), subject("<rex>", "dog", 1)
    priors = prior("bear", 2), prior("dog", 3)
    method, options = METHODS["custom-diffusion"], TrainOptions(steps=4, batch=2, seed=7, flips=True)
    one = train(backbone, [bear], priors[:1], method, options=options)
    two = train(backbone, [dog], priors[1:], method, options=TrainOptions(steps=4, batch=2, seed=8, rare_token=1))
    joint = train(backbone, [bear, dog], priors, method, options=options)
    merged = merge(backbone, [one, two], options=MergeOptions()).concept
    small = compress(one).concept
    found: dict[str, torch.Tensor] = {}
    for name, concept in {"one": one, "two": two, "joint": joint, "compressed": small}.items():
        found |= tensors_of(name, concept)
    # The factors of a merge are unique up to signs only; their products are not.
    found |= {f"merged/{layer}": change.full().float().contiguous() for layer, change in merged.deltas.items()}
    for name, concept in {"one": one, "merged": merged}.items():
        with concept.applied(backbone):
            drawn = sample(backbone, [PROMPT], seeds=[3], options=SampleOptions(steps=3))
            found[f"picture/{name}"] = torch.tensor(next(iter(drawn)).image).contiguous()
    torch.set_num_threads(threads)
    return found


def digests(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    return {key: hashlib.sha256(tensor.numpy().tobytes()).hexdigest()[:16] for key, tensor in tensors.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_tensors_and_pixels_are_those_of_the_golden_file(family: str) -> None:
    now, golden = computed(family), load_file(GOLDEN / f"{family}.safetensors")
    assert now.keys() == golden.keys()
    if json.loads((GOLDEN / "machine.json").read_text()) == machine():
        before, after = digests(golden), digests(now)
        assert [key for key in before if before[key] != after[key]] == []
    for key, tensor in golden.items():
        if tensor.dtype == torch.uint8:
            assert (now[key].int() - tensor.int()).abs().max() <= 2, key
        else:
            error = (now[key] - tensor).norm() / tensor.norm()
            assert error <= (CLOSE_MERGED if key.startswith("merged/") else CLOSE), f"{key}: {error:.1e}"


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for each in FAMILIES:
        save_file(computed(each), GOLDEN / f"{each}.safetensors")
    (GOLDEN / "machine.json").write_text(json.dumps(machine()) + "\n")
