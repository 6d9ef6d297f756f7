"""A Method says what of the backbone may change and at what rate; its named values are the paper's variants.

`trainable` makes a backbone trainable in place under a method (paper, Sec. 3.1, 3.2 and App. D) and restores it. It
knows nothing of pictures, batches or files.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from moongate.backbone import Backbone
from moongate.backbone.rare_tokens import latest
from moongate.concept import Concept
from moongate.errors import OptionError

__all__ = ["METHODS", "Method", "Trainable", "initial_rows", "trainable"]


@dataclass(frozen=True, kw_only=True)
class Method:
    """Which weights and tokens are trained, against what, and how fast."""

    name: str
    weights: Literal["cross-attention-kv", "cross-attention", "denoiser"] | None = "cross-attention-kv"
    """Set of denoiser weights to train; None trains the tokens alone."""
    trains_tokens: bool = True
    """Whether the rows of the modifier tokens move."""
    token_start: Literal["rare", "random", "category"] = "rare"
    """New tokens begin as a rarely used token, as noise of the usual norm, or as the category's word."""
    names_category: bool = True
    """Whether captions say the category after the token: "a <bear> teddy bear", not "a <bear>"."""
    augments: bool = True
    """Whether target pictures are zoomed and shrunk (Sec. 3.2)."""
    prior_weight: float = 1.0
    """Weight of the regularization loss beside the target loss; 0 trains without regularization pictures."""
    generates_prior: bool = False
    """Whether the regularization pictures are drawn by the model; the loop takes what it is given."""
    stops_start_token: bool = True
    """Whether the keys and values of the start token send no gradient (App. D)."""
    lr_per_picture: float = 1e-5
    """Learning rate for each picture of a step: 8e-5 at the paper's eight."""
    targets_per_step: int = 4
    """Target pictures of a step, beside as many regularization pictures where there are any: the paper's eight."""
    steps_per_subject: int = 250
    weight_decay: float = 0.01
    """Decoupled decay toward the pretrained weights, never toward zero."""

    def __post_init__(self) -> None:
        if self.lr_per_picture <= 0:
            raise OptionError(f"The rate per picture is {self.lr_per_picture}; it must be above 0, such as 1e-5.")
        if self.prior_weight < 0:
            raise OptionError(f"The prior weight is {self.prior_weight}; it must be 0 or more (the paper's is 1).")
        if self.weights is None and not self.trains_tokens:
            raise OptionError(f"The method {self.name!r} trains neither weights nor tokens. Choose at least one.")

    def worded(self, text: str, *, token: str | None, category: str) -> str:
        """Return a caption or prompt as the method says it: with the category after the token, or without."""
        return text if self.names_category or not token else text.replace(f"{token} {category}", token)

    def without_regularization(self) -> "Method":
        """Return the method with as many target pictures in all, and as many pictures in a step, but no others."""
        return dataclasses.replace(
            self,
            name=f"{self.name}-without-regularization",
            prior_weight=0.0,
            targets_per_step=2 * self.targets_per_step,
            steps_per_subject=self.steps_per_subject // 2,
        )


METHODS: Mapping[str, Method] = {
    method.name: method
    for method in (
        Method(name="custom-diffusion"),
        Method(name="custom-diffusion-cross-attention", weights="cross-attention"),
        Method(name="custom-diffusion-faces", weights="cross-attention", lr_per_picture=5e-6, steps_per_subject=750),
        Method(name="custom-diffusion-fixed-token", trains_tokens=False),
        Method(name="custom-diffusion-random-token", token_start="random"),
        Method(name="custom-diffusion-without-augmentation", augments=False),
        Method(name="custom-diffusion-generated-regularization", generates_prior=True),
        Method(name="custom-diffusion").without_regularization(),
        Method(name="fine-tune-all", weights="denoiser", lr_per_picture=1e-6, steps_per_subject=500),
        Method(
            name="dreambooth",
            weights="denoiser",
            trains_tokens=False,
            augments=False,
            generates_prior=True,
            stops_start_token=False,
            lr_per_picture=1e-6 / 8,
            steps_per_subject=2500,
        ),
        Method(
            name="textual-inversion",
            weights=None,
            token_start="category",
            names_category=False,
            augments=False,
            prior_weight=0.0,
            stops_start_token=False,
            lr_per_picture=5e-3,
            targets_per_step=8,
            steps_per_subject=5000,
        ),
    )
}
"""The paper's method, its variants with all of cross-attention and for faces, its ablations (Sec. 4.4, App. B) and its
baselines, with their rates at eight pictures a step (App. D): 8e-6 for fine-tuning all, 1e-6 for DreamBooth, 0.04 for
Textual Inversion. They suit Stable Diffusion; another model scales all of them by its own `lr_scale`, measured with
the paper's method, so that the methods keep the ratios that the paper found for them."""


@dataclass(frozen=True, kw_only=True)
class Trainable:
    """What an optimizer moves: weights in the backbone (float32) and token rows; and the pretrained weights."""

    weights: Mapping[str, nn.Parameter]
    rows: Mapping[str, nn.Parameter]
    pretrained: Mapping[str, Tensor]

    def parameters(self) -> list[nn.Parameter]:
        """Return everything that moves, in a fixed order."""
        return [*self.weights.values(), *(row for row in self.rows.values() if row.requires_grad)]

    @torch.no_grad()
    def decay(self, amount: float) -> None:
        """Pull the weights toward the pretrained ones by the fraction `amount`."""
        for name, weight in self.weights.items():
            weight.lerp_(self.pretrained[name], amount)

    @torch.no_grad()
    def deltas(self) -> dict[str, Tensor]:
        """Return W - W0 for each weight, float32 copies."""
        return {name: (weight - self.pretrained[name]).clone() for name, weight in self.weights.items()}

    @torch.no_grad()
    def state(self) -> dict[str, Any]:
        """Return copies of all that moves."""
        copied = {name: weight.detach().cpu().clone() for name, weight in self.weights.items()}
        return {"weights": copied, "rows": {token: row.detach().cpu().clone() for token, row in self.rows.items()}}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` returned."""
        for name, weight in self.weights.items():
            weight.copy_(state["weights"][name])
        for token, row in self.rows.items():
            row.copy_(state["rows"][token])


def initial_rows(
    backbone: Backbone,
    tokens: Sequence[str],
    method: Method,
    generator: torch.Generator,
    *,
    first: int = 0,
    categories: Sequence[str] = (),
) -> dict[str, Tensor]:
    """Return the rows that new tokens begin with, float32 [width]: distinct rare tokens, taken by id (App. D).

    `first` counts rare tokens to pass over, so that concepts trained apart need not begin alike; `categories` has one
    for each token, for a method whose tokens begin as the category.
    """
    if method.token_start == "category":
        return {token: backbone.word_row(words) for token, words in zip(tokens, categories, strict=True)}
    if method.token_start == "random":
        return {token: backbone.random_row(generator) for token in tokens}
    rare = backbone.rare_tokens
    if first + len(tokens) > len(rare) and not backbone.lists_rare_tokens:
        rare = tuple(dict.fromkeys((*rare, *latest(backbone))))
    rare = rare[first:]
    if len(tokens) > len(rare):
        raise OptionError(
            f"{len(tokens)} new tokens are asked for from rare token {first} on, but {backbone.name!r} names "
            f"{len(backbone.rare_tokens)} rare tokens to begin from. Train fewer concepts together, begin earlier, or "
            "list more ids under rare_tokens in its moongate.json."
        )
    return {token: backbone.token_row(rare[index]) for index, token in enumerate(tokens)}


@contextlib.contextmanager
def trainable(
    backbone: Backbone, method: Method, rows: Mapping[str, Tensor], *, start_from: Concept | None = None
) -> Iterator[Trainable]:
    """Make the method's weights and the rows of new tokens trainable in place; restore the backbone on exit.

    The trained weights are float32 copies, whatever the precision of the base, so that small updates are not lost.
    With `start_from` they begin as that concept leaves them, and captions may use its tokens, which stay as they are.
    """
    names = backbone.weights(method.weights) if method.weights else {}
    pretrained = {name: weight.detach().float() for name, weight in names.items()}
    working = {name: tensor.clone() for name, tensor in pretrained.items()}
    for name, change in (start_from.deltas if start_from else {}).items():
        working[name] += change.full().to(working[name].device)
    parameters = {token: nn.Parameter(row.clone(), method.trains_tokens) for token, row in rows.items()}
    with contextlib.ExitStack() as stack:
        stack.enter_context(backbone.weights_replaced(working))
        stack.enter_context(backbone.tokens({**(start_from.tokens if start_from else {}), **parameters}))
        if method.stops_start_token:
            stack.enter_context(_start_token_stopped(backbone))
        for weight in names.values():
            weight.requires_grad_(True)
            stack.callback(weight.requires_grad_, False)
            stack.callback(setattr, weight, "grad", None)
        yield Trainable(weights=names, rows=parameters, pretrained=pretrained)


@contextlib.contextmanager
def _start_token_stopped(backbone: Backbone) -> Iterator[None]:
    """Let no gradient pass through the keys and values of position 0 (App. D)."""

    def stop(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return torch.cat([output[:, :1].detach(), output[:, 1:]], dim=1)

    handles = [module.register_forward_hook(stop) for module in backbone.kv_projections()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
