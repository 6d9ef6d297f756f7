"""Tokenizer and text encoder: captions to conditioning. A base has one pair of them, or two (SDXL).

New tokens are parameters of their own. Ids beyond the embedding table are looked up separately; the table is neither
enlarged nor copied nor given to an optimizer, so that no gradient must be masked and weight decay cannot reach other
words. The module knows nothing of denoisers or concepts.
"""

import contextlib
import copy
import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from moongate.errors import BackboneError, ConceptFileError, TokenError
from moongate.tensor_files import read_tensors
from moongate.texts import is_encodable

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

__all__ = [
    "PROJECTION",
    "PROJECTION_FILE",
    "Conditioning",
    "TextEncoder",
    "check_distinct",
    "check_token",
    "folded",
    "read_projection",
]

PROJECTION_FILE, PROJECTION = "caption_projection.safetensors", "text_projection.weight"
"""Optional file in a model folder: the matrix [width, hidden] that projects the feature of a caption's end token into
the space that captions and pictures share in CLIP. Pipelines are stored without it, because they draw without it."""

IDS_KEPT = 1000
"""Captions whose token ids are kept."""


def folded(token: str) -> str:
    """Return a token as CLIP's tokenizer reads it, in lower case: `<Rex>` and `<rex>` are one word to it."""
    return unicodedata.normalize("NFC", token).lower()


def read_projection(folder: Path) -> Float[Tensor, "width hidden"] | None:
    """Return the projection of captions of a model folder, in float32; None if it has none.

    Raises:
        BackboneError: The file cannot be read.
    """
    file = folder / PROJECTION_FILE
    if not file.is_file():
        return None
    try:
        return read_tensors(file)[0][PROJECTION].float()
    except (ConceptFileError, KeyError) as error:
        raise BackboneError(f"{file} holds no matrix {PROJECTION!r} that can be read. Copy the model again.") from error


def check_token(token: str, vocabulary: Collection[str]) -> None:
    """Raise TokenError unless a tokenizer of this vocabulary can take `token` as one new word."""
    if not token.strip() or any(character.isspace() for character in token):
        raise TokenError(f"The token {token!r} is empty or has white space. Use one word such as '<bear>'.")
    if not is_encodable(token):
        raise TokenError(f"The token {token!r} has a character that UTF-8 cannot hold. Use a word such as '<bear>'.")
    if token in vocabulary or token.lower() + "</w>" in vocabulary:
        raise TokenError(
            f"The token {token!r} is already a word of the tokenizer, and would lose its meaning. "
            f"Use a new one such as '<{token.strip('<>|') or 'new'}1>'."
        )
    if not token.strip("<>"):
        raise TokenError(f"The token {token!r} has nothing inside its brackets. Use a word such as '<bear>'.")
    if not (token.startswith("<") and token.endswith(">")):
        raise TokenError(
            f"The token {token!r} has no angle brackets, so that it would look like a word in a prompt. "
            f"Use '<{token.strip('<>')}>'."
        )
    inner = token[1:-1]
    if re.search("[<>]", inner) or inner != inner.strip("-"):
        raise TokenError(
            f"The token {token!r} could not be read back from a file. Use no brackets inside it and no hyphen at "
            f"its ends: '<{re.sub('[<>]+', '-', inner).strip('-') or 'new'}>'."
        )


def check_distinct(tokens: Iterable[str], used: Iterable[str]) -> None:
    """Check that the tokenizer distinguishes new tokens from one another and from those in use.

    Raises:
        TokenError: Two are equal, or differ only in upper and lower case.
    """
    known = {folded(token): token for token in used}
    for token in tokens:
        other = known.get(folded(token))
        known[folded(token)] = token
        if other is not None:
            alike = f"tokens {other!r} and {token!r}, one word to the model"
            both = f"token {token!r}" if other == token else alike
            raise TokenError(
                f"Two concepts both use the {both}. Rename one of them, for example with `moongate convert FILE "
                "--to moongate --token '<new2>' --out OTHER`."
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class Conditioning:
    """What the denoiser gets of some captions."""

    features: Float[Tensor, "captions tokens width"]
    """What cross-attention attends to; the features of several text encoders are side by side."""
    pooled: Float[Tensor, "captions pooled_width"] | None = None
    """One vector for each caption, for the families that need it (SDXL)."""

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, rows: slice | Int[Tensor, " rows"]) -> Self:
        return type(self)(features=self.features[rows], pooled=None if self.pooled is None else self.pooled[rows])

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        """Concatenate the captions of several."""
        pooled = [part.pooled for part in parts if part.pooled is not None]
        return cls(features=torch.cat([part.features for part in parts]), pooled=torch.cat(pooled) if pooled else None)

    def zeroed(self) -> Self:
        """Return a conditioning of zeros with the same shape."""
        pooled = None if self.pooled is None else torch.zeros_like(self.pooled)
        return type(self)(features=torch.zeros_like(self.features), pooled=pooled)


class TextEncoder:
    """A tokenizer and the CLIP text model that reads its ids."""

    def __init__(
        self,
        tokenizer: "CLIPTokenizer",
        model: "CLIPTextModel | CLIPTextModelWithProjection",
        *,
        reads_penultimate: bool = False,
    ) -> None:
        length = tokenizer.model_max_length
        if not (isinstance(length, int | float) and length > 2):  # with start and end
            raise BackboneError(
                f"The model's tokenizer sets model_max_length to {length!r}. CLIP's own reads 77 tokens."
            )
        _check_complete(tokenizer, model.get_input_embeddings().num_embeddings)
        self.tokenizer = tokenizer
        self.tokenizer.model_max_length = int(min(length, model.config.max_position_embeddings))
        self.model = model
        self.reads_penultimate = reads_penultimate
        """Whether features are the state before the last layer, without the final normalization (SDXL)."""
        self._ids: dict[str, Tensor] = {}

    @property
    def table(self) -> nn.Embedding:
        """The model's own embedding table."""
        module = self.model.get_input_embeddings()
        return module.base if isinstance(module, _ExtendedEmbedding) else module

    @property
    def width(self) -> int:
        """Width of a token's row."""
        return self.table.embedding_dim

    @contextlib.contextmanager
    def extended(self, rows: Mapping[str, Float[Tensor, " width"]], *, columns: slice) -> Iterator[None]:
        """Let the tokenizer and the model know new tokens until the block ends. Gradients reach the rows.

        Args:
            rows: The row of each token for all text encoders.
            columns: The part of a row that belongs to this one.
        """
        before = self.tokenizer, self.model.get_input_embeddings(), self._ids
        try:
            self._ids = {}
            self.tokenizer = copy.deepcopy(self.tokenizer)
            if rows:
                self.tokenizer.add_tokens(list(rows))
            ids = {self.tokenizer.convert_tokens_to_ids(token): row for token, row in rows.items()}
            self.model.set_input_embeddings(_ExtendedEmbedding(self.table, ids, columns))
            yield
        finally:
            self.tokenizer, embedding, self._ids = before
            self.model.set_input_embeddings(embedding)

    def token_ids(self, captions: Sequence[str]) -> Int[Tensor, "captions tokens"]:
        """Return the token ids of captions, padded or cut to the context of the model.

        Those of the last captions are kept where the model computes, because training reads the same ones again.

        Raises:
            TokenError: A caption has a character that UTF-8 cannot hold.
        """
        if len(self._ids) > IDS_KEPT:
            self._ids.clear()
        if new := [caption for caption in dict.fromkeys(captions) if caption not in self._ids]:
            if wrong := [caption for caption in new if not is_encodable(caption)]:
                raise TokenError(f"{wrong[0]!r} has a character that UTF-8 cannot hold. Type it in UTF-8.")
            encoded = self.tokenizer(
                new,
                padding="max_length",
                truncation=True,
                max_length=self.tokenizer.model_max_length,
                return_tensors="pt",
            )
            self._ids |= zip(new, encoded.input_ids.to(self.model.device), strict=True)
        return torch.stack([self._ids[caption] for caption in captions])

    def cut_off(self, caption: str) -> str:
        """Return the end of a caption that does not fit into the model; empty where all of it fits.

        It begins with a whole word, unless all of the caption is one.
        """
        pieces = self.tokenizer(caption, return_offsets_mapping=True, add_special_tokens=False, verbose=False)
        fitting = self.tokenizer.model_max_length - 2  # start and end
        offsets = pieces.offset_mapping
        if len(offsets) <= fitting:
            return ""
        read = caption[: offsets[fitting][0]]
        cut_word = read.split()[-1] if read and not read[-1].isspace() else ""
        return caption[(len(read) - len(cut_word)) or len(read) :]

    def words(self, caption: str) -> list[tuple[str, list[int]]]:
        """Return the words of a caption, each with the positions of its pieces; position 0 is the start token."""
        pieces = self.tokenizer.convert_ids_to_tokens(self.token_ids([caption])[0].tolist())
        added = {folded(token) for token in self.tokenizer.get_added_vocab()}
        words, first = [], 1
        for position in range(1, pieces.index(self.tokenizer.eos_token)):
            if pieces[position].endswith("</w>") or folded(pieces[position]) in added:
                text = "".join(piece.removesuffix("</w>") for piece in pieces[first : position + 1])
                words.append((text, list(range(first, position + 1))))
                first = position + 1
        return words

    def encode(self, captions: Sequence[str], *, padded: bool = True) -> Conditioning:
        """Return the features of captions and, if the model has a projection for it, their pooled vector.

        No token reads a later one. So without the padding, the features up to the end tokens are the same.

        The pooled vector is taken at the end token. With a configuration as old as SDXL's, transformers takes it at the
        highest id, which is that of a new token. So plain diffusers with a textual inversion pools at the new token
        unless `text_encoder_2.config.eos_token_id` is corrected; other programs take the end token.
        """
        ids = self.token_ids(captions)
        ends = (ids == self.tokenizer.eos_token_id).int().argmax(1)
        if not padded:
            ids = ids[:, : int(ends.max()) + 1]
        output = self.model(ids, output_hidden_states=self.reads_penultimate)
        features = output.hidden_states[-2] if self.reads_penultimate else output.last_hidden_state
        project = getattr(self.model, "text_projection", None)
        if project is None:
            return Conditioning(features=features)
        rows = torch.arange(len(ids), device=ids.device)
        return Conditioning(features=features, pooled=project(output.last_hidden_state[rows, ends]))


def _check_complete(tokenizer: "CLIPTokenizer", words: int) -> None:
    """Refuse a tokenizer whose files are missing: transformers then makes one that reads every caption as nonsense.

    Args:
        tokenizer: The tokenizer.
        words: How many the text encoder knows.
    """
    known = len(tokenizer.get_vocab())
    if known < words // 2:
        raise BackboneError(
            f"The model's tokenizer knows {known} of {words} words: its files are missing (tokenizer.json, or "
            "vocab.json and merges.txt). Copy or download the model again."
        )


class _ExtendedEmbedding(nn.Module):
    """The embedding table, with separate rows for ids beyond its end."""

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
