"""Where a model computes: the names of PyTorch's devices, checked before anything is loaded."""

import torch

from moongate.errors import OptionError

__all__ = ["available_device"]

INSTALL = "pip install uv, then uv pip install torch --torch-backend=auto --reinstall-package torch"
"""Installs the build of PyTorch that suits the graphics card and its driver, on Linux and on Windows."""


def available_device(device: str | torch.device | None) -> torch.device:
    """Return the device of a name, such as "cuda", "cuda:1" or "cpu"; without a name CUDA if there is any.

    Raises:
        OptionError: There is no device of that name here; the message says what is missing.
    """
    has_cuda = torch.cuda.is_available()
    if device is None:
        return torch.device("cuda" if has_cuda else "cpu")
    known = "Known: cpu, cuda, and cuda:1 for a second GPU."
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise OptionError(f"There is no device {device!r}. {known}") from error
    if chosen.type == "cpu":
        return chosen
    if chosen.type == "mps":
        raise OptionError(
            "The device 'mps' has no double precision, which merging needs, and was never tested. Leave "
            "--device out to compute on the CPU."
        )
    if chosen.type != "cuda":
        raise OptionError(f"The device {str(device)!r} is not supported. {known}")
    if not (torch.version.cuda or torch.version.hip):
        raise OptionError(
            f"The device {str(device)!r} needs a build of PyTorch with CUDA, and this one ({torch.__version__}) has "
            f"none. Install one: {INSTALL}. Or leave --device out to compute on the CPU."
        )
    if not has_cuda:
        raise OptionError(
            f"PyTorch finds no GPU for the device {str(device)!r}. Check with nvidia-smi that the card and its driver "
            "work, or leave --device out to compute on the CPU."
        )
    if (chosen.index or 0) >= torch.cuda.device_count():
        raise OptionError(
            f"There is no GPU {str(device)!r}: PyTorch finds {torch.cuda.device_count()}, from cuda:0 on."
        )
    return chosen
