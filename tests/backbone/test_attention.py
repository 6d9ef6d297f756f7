import pytest
import torch

from moongate.backbone import Backbone
from moongate.backbone.attention import recorded
from moongate.errors import OptionError
from moongate.sampling import SampleOptions, sample

PROMPT = "photo of a red bear"


def draw(backbone: Backbone, guidance: float = 6.0) -> bytes:
    (drawn,) = sample(backbone, [PROMPT], seeds=[0], options=SampleOptions(steps=2, guidance=guidance))
    return drawn.image.tobytes()


def test_watching_changes_no_picture_and_leaves_no_trace(each: Backbone) -> None:
    processors = list(each.unet.attn_processors.values())
    plain = draw(each)
    with recorded(each, pictures=1, size=(8, 8)) as maps:
        assert draw(each) == plain
    assert all(now is before for now, before in zip(each.unet.attn_processors.values(), processors, strict=True))
    mean = maps.mean()
    assert mean.shape == (1, 16, 8, 8)
    torch.testing.assert_close(mean.sum(1), torch.ones(1, 8, 8), atol=1e-5, rtol=0)


def test_maps_are_the_softmax_of_equation_3(tiny: Backbone) -> None:
    """At one layer, written out head by head."""
    name, module = next(iter(tiny.cross_attentions().items()))
    inputs: dict[str, torch.Tensor] = {}

    def look(_module: object, args: tuple[torch.Tensor, ...], kwargs: dict[str, torch.Tensor]) -> None:
        inputs.update(hidden=args[0], text=kwargs["encoder_hidden_states"])

    handle = module.register_forward_pre_hook(look, with_kwargs=True)
    with recorded(tiny, pictures=1, size=(8, 8)) as maps, torch.no_grad():
        tiny.predict(torch.ones(1, 4, 8, 8), torch.tensor([500]), tiny.encode_text([PROMPT]))
    handle.remove()
    assert name.endswith("attn2")
    with recorded(tiny, pictures=1, size=(8, 8)) as maps, torch.no_grad():
        module(inputs["hidden"], encoder_hidden_states=inputs["text"])
        query, key = module.to_q(inputs["hidden"])[0], module.to_k(inputs["text"])[0]
    heads = []
    for q, k in zip(query.chunk(module.heads, 1), key.chunk(module.heads, 1), strict=True):
        heads.append(((q @ k.T) / q.shape[1] ** 0.5).softmax(1))
    expected = torch.stack(heads).mean(0).T.unflatten(1, (8, 8))
    torch.testing.assert_close(maps.mean()[0], expected, atol=1e-6, rtol=1e-5)


def test_the_half_of_guidance_that_knows_no_caption_is_left_out(tiny: Backbone) -> None:
    """With guidance of the smallest amount the picture's own maps are those without guidance."""
    found = []
    for guidance in (1.0, 1.0 + 1e-6):
        with recorded(tiny, pictures=1, size=(8, 8)) as maps:
            draw(tiny, guidance)
        found.append(maps.mean())
    torch.testing.assert_close(*found, atol=1e-4, rtol=1e-3)


def test_the_processors_come_back_after_an_error(tiny: Backbone) -> None:
    before = list(tiny.unet.attn_processors.values())
    with pytest.raises(RuntimeError), recorded(tiny, pictures=1, size=(8, 8)):
        raise RuntimeError
    assert all(now is then for now, then in zip(tiny.unet.attn_processors.values(), before, strict=True))
    with recorded(tiny, pictures=1, size=(8, 8)) as maps, pytest.raises(OptionError, match="Nothing was drawn"):
        maps.mean()
