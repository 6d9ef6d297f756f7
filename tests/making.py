"""Concepts and models of random numbers that several tests need."""

from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPModel

from moongate.backbone import Backbone
from moongate.concept import Concept, Dense, LowRank, SubjectRecord


def make_concept(backbone: Backbone, *, low_rank: bool = True, tokens: tuple[str, ...] = ("<bear>",)) -> Concept:
    """A concept of distinct ranks by layer, or of dense changes."""
    generator = torch.Generator().manual_seed(1)
    deltas: dict[str, Dense | LowRank] = {}
    for number, (name, weight) in enumerate(backbone.weights("cross-attention-kv").items()):
        rank = 1 + number % 3
        up = 0.02 * torch.randn(len(weight), rank, generator=generator)
        down = torch.randn(rank, weight.shape[1], generator=generator)
        deltas[name] = (
            LowRank(up=up, down=down)
            if low_rank
            else Dense(delta=0.02 * torch.randn(weight.shape, generator=generator))
        )
    width = sum(backbone.token_widths)
    return Concept(
        deltas=deltas,
        tokens={token: torch.randn(width, generator=generator) for token in tokens},
        token_widths=backbone.token_widths,
        subjects=tuple(
            SubjectRecord(category="bear", token=token, prompts=(f"photo of a {token} bear",)) for token in tokens
        ),
        base=backbone.name,
        fingerprint=backbone.fingerprint,
        method="custom-diffusion",
        record={"steps": 3},
    )


def invented(backbone: Backbone, *subjects: tuple[str | None, str], seed: int = 0, rank: int | None = None) -> Concept:
    """A concept with random changes and token rows."""
    generator = torch.Generator().manual_seed(seed)
    deltas: dict[str, Dense | LowRank] = {}
    for name, weight in backbone.weights("cross-attention-kv").items():
        change = 0.1 * torch.randn(weight.shape, generator=generator)
        if rank:
            down = torch.randn(rank, weight.shape[1], generator=generator)
            deltas[name] = LowRank(up=change[:, :rank].clone(), down=down)
        else:
            deltas[name] = Dense(delta=change)
    rows = {token: torch.randn(sum(backbone.token_widths), generator=generator) for token, _ in subjects if token}
    return Concept(
        deltas=deltas,
        tokens=rows,
        token_widths=backbone.token_widths,
        subjects=tuple(SubjectRecord(category=category, token=token) for token, category in subjects),
        base=backbone.name,
        fingerprint=backbone.fingerprint,
        method="custom-diffusion",
    )


def make_clip(folder: Path, tiny: Backbone) -> Path:
    """Write a CLIP model of random weights with the tiny tokenizer."""
    torch.manual_seed(3)
    common = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    pieces = tiny.tokenizer
    special = {"bos_token_id": pieces.bos_token_id, "eos_token_id": pieces.eos_token_id}
    special["pad_token_id"] = pieces.pad_token_id
    text = common | special | {"vocab_size": len(tiny.tokenizer), "max_position_embeddings": 16}
    vision = common | {"image_size": 32, "patch_size": 16}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder)
    tiny.tokenizer.save_pretrained(folder)
    return folder
