"""Text as the denoiser is told it: a tokenizer with its CLIP text model, of which a base has one or two.

It knows how a token is added to one of them and what it makes of a caption; nothing of denoisers or concepts.
"""

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

__all__ = ["Conditioning", "TextEncoder"]


@dataclass(frozen=True, kw_only=True)
class Conditioning:
    """What the denoiser is told of some captions.

    `features` is what cross-attention attends to, those of several text encoders side by side; `pooled` sums up each
    caption in one vector, for the families that want one.
    """

    features: Float[Tensor, "captions tokens width"]
    pooled: Float[Tensor, "captions pooled_width"] | None = None

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, rows: slice) -> Self:
        return type(self)(features=self.features[rows], pooled=None if self.pooled is None else self.pooled[rows])

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        """Put several one after the other."""
        pooled = [part.pooled for part in parts if part.pooled is not None]
        return cls(features=torch.cat([part.features for part in parts]), pooled=torch.cat(pooled) if pooled else None)

    def zeroed(self) -> Self:
        """Return as much of nothing at all."""
        pooled = None if self.pooled is None else torch.zeros_like(self.pooled)
        return type(self)(features=torch.zeros_like(self.features), pooled=pooled)


class TextEncoder:
    """A tokenizer and the text model that reads its ids."""

    def __init__(
        self,
        tokenizer: "CLIPTokenizer",
        model: "CLIPTextModel | CLIPTextModelWithProjection",
        *,
        reads_penultimate: bool = False,
    ) -> None:
        self.tokenizer = tokenizer
        self.model = model
        self.reads_penultimate = reads_penultimate
        """Whether features are the state before the last layer, without the final normalization."""

    @property
    def table(self) -> nn.Embedding:
        """The model's own embedding table."""
        module = self.model.get_input_embeddings()
        return module.base if isinstance(module, _ExtendedEmbedding) else module

    @property
    def width(self) -> int:
        """Numbers in a token's row."""
        return self.table.embedding_dim

    @contextlib.contextmanager
    def extended(self, rows: Mapping[str, Float[Tensor, " width"]], *, columns: slice) -> Iterator[None]:
        """Look tokens up in `columns` of their rows, beside the table, until the block ends.

        The table is neither enlarged nor copied, and gradients reach the rows.
        """
        before = self.tokenizer, self.model.get_input_embeddings()
        try:
            self.tokenizer = copy.deepcopy(self.tokenizer)
            if rows:
                self.tokenizer.add_tokens(list(rows))
            ids = {self.tokenizer.convert_tokens_to_ids(token): row for token, row in rows.items()}
            self.model.set_input_embeddings(_ExtendedEmbedding(self.table, ids, columns))
            yield
        finally:
            self.tokenizer, embedding = before
            self.model.set_input_embeddings(embedding)

    def token_ids(self, captions: Sequence[str]) -> Int[Tensor, "captions tokens"]:
        """Tokenize, pad to the model's length, and cut what is longer."""
        encoded = self.tokenizer(
            list(captions),
            padding="max_length",
            truncation=True,
            max_length=self.tokenizer.model_max_length,
            return_tensors="pt",
        )
        return encoded.input_ids.to(self.model.device)

    def words(self, caption: str) -> list[tuple[str, list[int]]]:
        """Return a caption's words, each with the positions of its pieces; position 0 is the start token."""
        pieces = self.tokenizer.convert_ids_to_tokens(self.token_ids([caption])[0].tolist())
        added = self.tokenizer.get_added_vocab()
        words, first = [], 1
        for position in range(1, pieces.index(self.tokenizer.eos_token)):
            if pieces[position].endswith("</w>") or pieces[position] in added:
                text = "".join(piece.removesuffix("</w>") for piece in pieces[first : position + 1])
                words.append((text, list(range(first, position + 1))))
                first = position + 1
        return words

    def encode(self, captions: Sequence[str]) -> Conditioning:
        """Return the features of captions and, where the model has a projection for it, their pooled vector.

        That is taken at the end token. The model's own would take it at the highest id, which is a new token's,
        wherever the configuration is as old as SDXL's.
        """
        ids = self.token_ids(captions)
        output = self.model(ids, output_hidden_states=self.reads_penultimate)
        features = output.hidden_states[-2] if self.reads_penultimate else output.last_hidden_state
        project = getattr(self.model, "text_projection", None)
        if project is None:
            return Conditioning(features=features)
        ends = (ids == self.tokenizer.eos_token_id).int().argmax(1)
        rows = torch.arange(len(ids), device=ids.device)
        return Conditioning(features=features, pooled=project(output.last_hidden_state[rows, ends]))


class _ExtendedEmbedding(nn.Module):
    """The embedding table with further rows, kept apart from it, for ids beyond its end."""

    def __init__(self, base: nn.Embedding, rows: Mapping[int, Tensor], columns: slice) -> None:
        super().__init__()
        self.base = base
        self.rows = rows
        self.columns = columns
        self.weight = base.weight

    def forward(self, ids: Tensor) -> Tensor:
        embedded = self.base(ids.clamp(max=self.base.num_embeddings - 1))
        for token_id, row in self.rows.items():
            embedded = torch.where((ids == token_id).unsqueeze(-1), row[self.columns].to(embedded), embedded)
        return embedded
