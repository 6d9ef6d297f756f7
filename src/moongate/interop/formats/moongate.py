"""Moongate's own concept file: one `.safetensors` file that keeps everything.

The layout belongs to `moongate.concept`; this module only presents it as a format among others.
"""

from moongate.concept import FORMAT, Concept
from moongate.interop.content import Content
from moongate.interop.formats.contract import Format, Parts, Rendered, WriteOptions
from moongate.tensor_files import CHECKSUM

__all__ = ["MOONGATE"]


def _recognizes(content: Content) -> bool:
    return content.header.get("format") == FORMAT


def _parse(content: Content) -> Parts:
    concept = Concept.from_file(content.path, content.values, content.header)
    rows = {token: concept.rows(token) for token in concept.tokens}
    notes = () if CHECKSUM in content.header else (f"{content.path.name} has no checksum: damage could go unnoticed.",)
    provenance = concept.to_json()
    return Parts(changes=concept.deltas, tokens=rows, kept=concept.kept, provenance=provenance, notes=notes)


def _render(concept: Concept, _options: WriteOptions) -> Rendered:
    return Rendered(files={"": concept.file_bytes})


MOONGATE = Format(
    name="moongate",
    title="Moongate's own concept file",
    layout="one `.safetensors`: changes (dense or low-rank factors), tokens, provenance",
    recognizes=_recognizes,
    parse=_parse,
    render=_render,
    keeps_changes="exactly",
    keeps_provenance=True,
)
