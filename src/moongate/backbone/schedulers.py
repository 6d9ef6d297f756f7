"""Schedulers of diffusers for a backbone's noise schedule, by short names or the names of their classes."""

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from moongate.errors import OptionError

if TYPE_CHECKING:
    from moongate.backbone import Backbone

__all__ = ["SCHEDULERS", "check_scheduler", "latent_schedule", "make_scheduler", "timed_scheduler"]

SCHEDULERS = {
    "ddpm": "DDPMScheduler",
    "ddim": "DDIMScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler-ancestral": "EulerAncestralDiscreteScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
}
"""Short names. The name of any scheduler class of diffusers can be given as well."""


def check_scheduler(name: str) -> None:
    """Check the name of a scheduler without a model, as `make_scheduler` does. Raises OptionError."""
    if name.lower() not in SCHEDULERS:
        _scheduler_class(name)


def latent_schedule(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a scheduler's configuration for latents, which no scheduler may clip to -1..1 as if they were pixels.

    DDPM and DDIM clip unless they are told not to, and the configurations of other schedulers do not tell them.
    """
    defaults = [name for name in config.get("_use_default_values", ()) if name != "clip_sample"]
    return {**config, "clip_sample": False, "_use_default_values": defaults}


def make_scheduler(backbone: "Backbone", name: str) -> Any:
    """Return a new scheduler of diffusers that is set up for the backbone's noise schedule.

    Args:
        backbone: The model.
        name: One of `SCHEDULERS`, or the name of a scheduler class of diffusers.

    Raises:
        OptionError: There is no such scheduler, or it is one for another kind of model.
    """
    return _scheduler_class(name).from_config(backbone.scheduler_config)


def timed_scheduler(backbone: "Backbone", name: str, steps: int) -> Any:
    """Return what `make_scheduler` does, with its timesteps on the backbone's device.

    Raises:
        OptionError: As `make_scheduler` says, or the scheduler cannot take this number of steps.
    """
    scheduler = make_scheduler(backbone, name)
    try:
        scheduler.set_timesteps(steps, device=backbone.device)
    except (ValueError, LookupError, ArithmeticError) as error:
        raise _unfit(name, steps) from error
    first, last = float(scheduler.timesteps[0]), float(scheduler.timesteps[-1])
    if first >= backbone.train_timesteps or (steps > 1 and first <= last):  # diffusers counts beyond its own levels
        raise _unfit(name, steps)
    return scheduler


def _unfit(name: str, steps: int) -> OptionError:
    return OptionError(
        f"The scheduler {name!r} cannot take {steps} steps with this model. Choose another number, such as 50, or "
        "another scheduler."
    )


def _scheduler_class(name: str) -> Any:
    import diffusers

    kind: Any = getattr(diffusers, SCHEDULERS.get(name.lower(), name), None)
    if not (inspect.isclass(kind) and issubclass(kind, diffusers.SchedulerMixin)):
        raise OptionError(
            f"Unknown scheduler {name!r}. Known: {', '.join(SCHEDULERS)}, or a scheduler class of diffusers."
        )
    if not _draws_from_noise(kind):
        raise OptionError(
            f"The scheduler {name!r} is made for another kind of model (flow matching, tokens or sigmas of its own). "
            f"Choose one of {', '.join(SCHEDULERS)}."
        )
    return kind


def _draws_from_noise(kind: Any) -> bool:
    """Return whether a scheduler takes the noise schedule of these models, and steps only with what they predict."""
    if not (hasattr(kind, "step") and hasattr(kind, "scale_model_input")):
        return False
    parameters = inspect.signature(kind.step).parameters.values()
    required = [p.name for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    if "Inverse" in kind.__name__:  # they lead from a picture to noise
        return False
    takes_betas = "beta_start" in inspect.signature(kind.__init__).parameters
    return takes_betas and required == ["self", "model_output", "timestep", "sample"]
