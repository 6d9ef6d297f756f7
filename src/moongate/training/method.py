"""A Method says which parts of the backbone are trained and how fast; `METHODS` holds the paper's variants by name.

`trainable` makes a backbone trainable in place under a method (paper, Sec. 3.1 and App. D) and restores it. The
module knows nothing of pictures, batches and files.
"""

import contextlib
import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from moongate.backbone import Backbone, Settings
from moongate.backbone.rare_tokens import latest
from moongate.concept import Concept
from moongate.errors import BackboneError, OptionError

__all__ = [
    "METHODS",
    "Method",
    "Trainable",
    "initial_rows",
    "method_for",
    "trainable",
    "usual_steps",
]


@dataclass(frozen=True, kw_only=True)
class Method:
    """Which weights and tokens are trained, with which pictures, and how fast.

    Raises:
        OptionError: A number is out of range, or nothing would be trained.
    """

    name: str
    weights: Literal["cross-attention-kv", "cross-attention", "denoiser"] | None = "cross-attention-kv"
    """Set of denoiser weights to train; None trains only the tokens."""
    trains_tokens: bool = True
    """Whether the embedding rows of the new tokens are trained."""
    token_start: Literal["rare", "random", "category"] = "rare"
    """What new tokens begin as: a rarely used token, noise like the rows of words, or the word of the category."""
    names_category: bool = True
    """Whether captions name the category after the token: "a <bear> teddy bear", not "a <bear>"."""
    augments: bool = True
    """Whether target pictures are enlarged and shrunk (Sec. 3.2)."""
    prior_weight: float = 1.0
    """Weight of the regularization loss relative to the target loss; 0 trains without regularization pictures."""
    generates_prior: bool = False
    """Whether the method's regularization pictures are drawn by the model. Training itself takes any pictures."""
    stops_start_token: bool = True
    """Whether the keys and values of the start token get no gradient (App. D)."""
    lr_per_picture: float = 1e-5
    """Learning rate for each picture of a step: 8e-5 for the paper's eight."""
    targets_per_step: int = 4
    """Target pictures of a step. A method with regularization adds as many regularization pictures: the paper's eight
    in all."""
    steps_per_subject: int = 250
    """Optimizer steps for each subject."""
    weight_decay: float = 0.01
    """Decoupled weight decay toward the pretrained weights, not toward zero."""

    def __post_init__(self) -> None:
        if self.lr_per_picture <= 0:
            raise OptionError(f"lr_per_picture is {self.lr_per_picture}; it must be above 0, such as 1e-5.")
        if self.prior_weight < 0:
            raise OptionError(f"prior_weight is {self.prior_weight}; it must be 0 or more (the paper's is 1).")
        if self.weights is None and not self.trains_tokens:
            raise OptionError(f"The method {self.name!r} trains neither weights nor tokens. Choose at least one.")

    def worded(self, text: str, *, token: str | None, category: str) -> str:
        """Return a caption or prompt as the method words it: with the category after the token, or without."""
        if self.names_category or not token:
            return text
        return re.sub(rf"(?<={re.escape(token)}) {re.escape(category)}(?!\w)", "", text, flags=re.IGNORECASE)

    def without_regularization(self) -> Self:
        """Return the method with target pictures in place of the regularization pictures.

        A step has as many pictures as before, and the run has as many target pictures, so half as many steps.
        """
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
"""The paper's method, the variants of its public code (all of cross-attention, and faces), its ablations (Sec. 4.4,
App. B) and its baselines. The learning rates at eight pictures a step are the paper's (App. D): 8e-6 for fine-tuning
all, 1e-6 for DreamBooth, 0.04 for Textual Inversion. They suit Stable Diffusion. Another model scales all of them by
its `lr_scale`, measured with the paper's method, so that the methods keep the ratios of the paper."""


def method_for(backbone: Backbone, name: str | None = None) -> Method:
    """Return the method of a name, or the one that suits the model: its `moongate.json` may set it.

    Args:
        backbone: The model to train.
        name: A key of `METHODS`; None is the model's own method, or custom-diffusion.

    Raises:
        OptionError: There is no method of this name.
        BackboneError: The model's own `moongate.json` names a method that does not exist.
    """
    if name is not None:
        return named_method(name)
    try:
        return named_method(backbone.settings.method or "custom-diffusion")
    except OptionError as error:
        raise BackboneError(f"The moongate.json of {backbone.name!r} sets method. {error}") from error


def named_method(name: str) -> Method:
    """Return the method of a name, which is a key of `METHODS`. Raises OptionError if there is none."""
    if name not in METHODS:
        raise OptionError(f"Unknown method {name!r}. Known: {', '.join(METHODS)}.")
    return METHODS[name]


def usual_steps(settings: Settings, method: Method, subjects: int = 1) -> int:
    """Return the optimizer steps for so many subjects: those of the method, by what the model's settings say."""
    scale = settings.steps_scale if subjects == 1 else settings.joint_steps_scale or settings.steps_scale
    return subjects * max(1, round(method.steps_per_subject * scale))


@dataclass(frozen=True, kw_only=True, eq=False)
class Trainable:
    """The parameters that an optimizer moves, and the pretrained weights; `trainable` makes one."""

    weights: Mapping[str, nn.Parameter]
    """Weights in the backbone, float32, by full parameter name."""
    rows: Mapping[str, nn.Parameter]
    """Embedding rows of the new tokens, float32 [width], by token."""
    pretrained: Mapping[str, Tensor]
    """Copies of the pretrained weights, float32, by full parameter name."""

    def parameters(self) -> list[nn.Parameter]:
        """Return everything that is trained, in a fixed order."""
        return [*self.weights.values(), *(row for row in self.rows.values() if row.requires_grad)]

    def learning_rates(self, *, weights: float, tokens: float) -> dict[nn.Parameter, float]:
        """Return the learning rate of each parameter, in the order of `parameters`."""
        of_weights = set(self.weights.values())
        return {each: weights if each in of_weights else tokens for each in self.parameters()}

    def gradients_taken(self) -> list[Tensor]:
        """Return the gradient of each parameter, zeros where there is none, and clear them."""
        parameters = self.parameters()
        taken = [torch.zeros_like(each) if each.grad is None else each.grad for each in parameters]
        for parameter in parameters:
            parameter.grad = None
        return taken

    @torch.no_grad()
    def decay(self, fraction: Float[Tensor, ""]) -> None:
        """Move the weights toward the pretrained ones by a fraction of the difference, from 0 to 1."""
        for name, weight in self.weights.items():
            weight.lerp_(self.pretrained[name], fraction)

    @torch.no_grad()
    def deltas(self) -> dict[str, Tensor]:
        """Return W - W0 for each weight, as float32 copies."""
        return {name: (weight - self.pretrained[name]).clone() for name, weight in self.weights.items()}

    @torch.no_grad()
    def state(self) -> dict[str, Any]:
        """Return copies of the weights and rows; `load_state` takes them."""
        weights = {name: weight.detach().cpu().clone() for name, weight in self.weights.items()}
        return {"weights": weights, "rows": {token: row.detach().cpu().clone() for token, row in self.rows.items()}}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Any]) -> None:
        """Set the weights and rows to what `state` returned."""
        for name, weight in self.weights.items():
            weight.copy_(state["weights"][name])
        for token, row in self.rows.items():
            row.copy_(state["rows"][token])


def initial_rows(
    backbone: Backbone,
    categories: Mapping[str, str],
    method: Method,
    generator: torch.Generator,
    *,
    first: int = 0,
    words: Sequence[str] = (),
) -> dict[str, Float[Tensor, " width"]]:
    """Return the embedding rows that new tokens begin with (Sec. 3.1, App. B and D).

    Args:
        backbone: The model whose rare tokens or words are used.
        categories: The category of each new token.
        method: Says whether tokens begin as rare tokens, at random, or as their category.
        generator: Source of random rows.
        first: Index of the first rare token to use, so that concepts trained apart need not begin alike.
        words: The word that each token begins as, in place of what the method says; each is one token of the model.

    Returns:
        A float32 row for each token, the rows of all text encoders one after the other.

    Raises:
        OptionError: The backbone has too few rare tokens, the number of words differs from that of the tokens, or a
            word is not one token.
    """
    if words:
        if len(words) != len(categories):
            raise OptionError(
                f"{len(categories)} new tokens begin as words, but {len(words)} were given ({', '.join(words)}). Give "
                "one initializer token for each new token, in their order."
            )
        return {token: _single_row(backbone, word) for token, word in zip(categories, words, strict=True)}
    if method.token_start == "category":
        return {token: backbone.word_row(category) for token, category in categories.items()}
    if method.token_start == "random":
        return {token: backbone.random_row(generator) for token in categories}
    rare = backbone.rare_tokens
    if first + len(categories) > len(rare) and backbone.settings.rare_tokens is None:
        rare = tuple(dict.fromkeys((*rare, *latest(backbone))))
    rare = rare[first:]
    if len(categories) > len(rare):
        raise OptionError(
            f"{len(categories)} new tokens need as many rare tokens from index {first} on, but {backbone.name!r} has "
            f"{len(backbone.rare_tokens)} rare tokens in all. Train fewer concepts together, begin at a lower index "
            "(--rare-token), or list more ids under rare_tokens in the model's moongate.json."
        )
    return {token: backbone.token_row(rare[index]) for index, token in enumerate(categories)}


def _single_row(backbone: Backbone, word: str) -> Float[Tensor, " width"]:
    """Return the row of a word that the tokenizer reads as one token."""
    ids = backbone.tokenizer(word, add_special_tokens=False).input_ids
    if len(ids) != 1:
        pieces = " + ".join(piece.removesuffix("</w>") for piece in backbone.tokenizer.convert_ids_to_tokens(ids))
        raise OptionError(
            f"The initializer token {word!r} is {len(ids)} tokens of the model ({pieces or 'none'}). Choose a word "
            "that is one, such as a short common noun."
        )
    return backbone.token_row(ids[0])


@contextlib.contextmanager
def trainable(
    backbone: Backbone,
    method: Method,
    rows: Mapping[str, Float[Tensor, " width"]],
    *,
    start_from: Concept | None = None,
) -> Iterator[Trainable]:
    """Make the method's weights and the rows of new tokens trainable in place; restore the backbone on exit.

    The trained weights are float32 copies, whatever the precision of the base, so that small updates are not lost.

    Args:
        backbone: The model; it is changed until the block ends.
        method: Which weights are trained, and whether the rows are.
        rows: The rows that the new tokens begin with, by token.
        start_from: A concept whose changes the weights begin with. Captions may use its tokens, which stay fixed.
    """
    names = backbone.weights(method.weights) if method.weights else {}
    pretrained = {name: weight.detach().float() for name, weight in names.items()}
    # The fused optimizer reads a weight and its gradient as they lie in memory, so that both need one layout.
    working = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in pretrained.items()}
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
    """Stop the gradient through the keys and values of position 0 (App. D)."""

    def stop(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return torch.cat([output[:, :1].detach(), output[:, 1:]], dim=1)

    handles = [module.register_forward_hook(stop) for module in backbone.kv_projections()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
