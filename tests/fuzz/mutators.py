"""Seeded changes of a file's bytes, and of the parts that its format gives it: values, headers, chunks, members.

Flipped bits alone rarely pass a checksum or a length, so what lies behind those is changed and the checksum made right.
"""

import copy
import io
import json
import os
import pickletools
import random
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

__all__ = [
    "Mutator",
    "mutated_archive",
    "mutated_bytes",
    "mutated_json",
    "mutated_lines",
    "mutated_pickle",
    "mutated_png",
    "mutated_safetensors",
    "mutated_table",
    "mutated_tar",
    "odd_entry",
]

Mutator = Callable[[bytes, random.Random], bytes]

RUNS = "../canary/ran"
"""A file that appears when code of a case runs."""
POSTSCRIPT = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n(" + RUNS.encode() + b") (w) file closefile showpage\n"
)
SPLICES = [
    *(b"", b"\0", b"\xff" * 8, b"[" * 3000, b"{}" * 40, b'"\\ud800"', b"9" * 5000, b"-1", b"1e999", b"null", b"NaN"),
    *(
        b"/dev/zero",
        b"../" * 40,
        b"\x1b]0;x\x07",
        b"(.*)*" * 9,
        b"%!PS-Adobe-3.0\n",
        POSTSCRIPT,
        b"\n" * 500,
        b"0x" + b"f" * 5000,
    ),
    *(
        b"!!python/object/apply:os.system ['touch " + RUNS.encode() + b"']",
        b"&a [*a, *a]",
        b"!!binary ",
        b"!!set {a, b}",
    ),
]
"""Bytes that replace a part of a file."""
ODD: list[Any] = [
    *(None, True, -1, 0, 3, 2**31, 2**63, -(2**64), 10**400, 1e308, float("nan"), float("inf"), 0.5, "", "x", "\ud800"),
    *("y" * 30_000, "../../canary/canary", "/dev/zero", "/dev/stdin", "http://127.0.0.1:9/x", "file:///etc/passwd"),
    *(
        "{:>999999999}",
        "{0.__class__}",
        "(.*)*(.*)*!",
        "[/b]",
        "[bold]",
        "<bear",
        "<a> <b>",
        "\x1b[2J",
        "\0",
        "a\nb",
        "none",
    ),
    *([], {}, [[]], [None], [1, 2], ["a"], {"a": 1}, [0] * 3000, {"a": {"b": [{}]}}),
]
"""Values that take the place of another one in JSON."""
OPCODES = [code for code in pickletools.opcodes if code.name not in ("PROTO", "FRAME", "STOP")]
CHUNKS = (
    b"iCCP",
    b"zTXt",
    b"iTXt",
    b"tEXt",
    b"eXIf",
    b"acTL",
    b"fcTL",
    b"fdAT",
    b"tRNS",
    b"PLTE",
    b"gAMA",
    b"cHRM",
    b"IDAT",
)
TYPES = "".join(map(chr, range(0x30, 0x3A))) + "SLKxgXNDMV\0"
"""Kinds of members of a tar file."""


def mutated_bytes(content: bytes, chance: random.Random) -> bytes:
    """Return the content with flipped bits, a part replaced, a part repeated, or its end cut off."""
    changed = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        begin = chance.randrange(len(changed) + 1)
        if chance.random() < 0.5:
            begin = min(begin, chance.randrange(600))  # headers are at the beginning
        action = chance.random()
        if action < 0.4 and begin < len(changed):
            changed[begin] ^= 1 << chance.randrange(8)
        elif action < 0.7:
            changed[begin : begin + chance.randrange(12)] = chance.choice(SPLICES)
        elif action < 0.85:
            changed[begin:begin] = changed[begin : begin + chance.randrange(200)]
        else:
            del changed[begin : len(changed) if chance.random() < 0.3 else begin + chance.randrange(40)]
    return bytes(changed)


def mutated_json(content: bytes, chance: random.Random) -> bytes:
    """Return JSON in which values are replaced by odd ones, keys renamed, or entries removed."""
    try:
        value = json.loads(content)
    except ValueError:
        return mutated_bytes(content, chance)
    for _ in range(chance.randint(1, 3)):
        value = _changed(value, chance)
    return json.dumps(value).encode()


def mutated_lines(content: bytes, chance: random.Random) -> bytes:
    """Return lines of which one is changed as JSON."""
    lines = content.splitlines()
    index = chance.randrange(len(lines))
    lines[index] = mutated_json(lines[index], chance)
    return b"\n".join(lines)


def mutated_safetensors(content: bytes, chance: random.Random) -> bytes:
    """Return a safetensors file with a changed header of the right length, or a changed record of a concept in it."""
    length = int.from_bytes(content[:8], "little")
    header, data = content[8 : 8 + length], content[8 + length :]
    value = json.loads(header)
    texts = value.get("__metadata__", {})
    if "concept" in texts and chance.random() < 0.7:
        texts["concept"] = mutated_json(texts["concept"].encode(), chance).decode()
        texts.pop("checksum", None)
        header = json.dumps(value).encode()
    elif chance.random() < 0.3:
        header = header.replace(b"F32", chance.choice([b"F16", b"F8_E4M3", b"F4", b"C64", b"BOOL", b"I64", b"U16"]), 2)
    else:
        header = mutated_json(header, chance)
    return struct.pack("<Q", len(header)) + header + data


def mutated_png(content: bytes, chance: random.Random) -> bytes:
    """Return a PNG file with changed, repeated and further chunks, all with a right checksum."""
    chunks, at = [], 8
    while at < len(content):
        size = int.from_bytes(content[at : at + 4], "big")
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + size]))
        at += size + 12
    for _ in range(chance.randint(1, 3)):
        index = chance.randrange(len(chunks))
        kind, data = chunks[index]
        action = chance.random()
        if action < 0.3 and data:
            chunks[index] = kind, mutated_bytes(data, chance)
        elif action < 0.5:
            size = [chance.choice([0, 1, 15, 16, 5000, 13300, 70_000, 2**31 - 1]) for _ in range(2)]
            depth, color = chance.choice([1, 2, 4, 8, 16]), chance.choice([0, 2, 3, 4, 6])
            chunks[0] = b"IHDR", struct.pack(">IIBBBBB", *size, depth, color, 0, 0, chance.randrange(2))
        elif action < 0.8:
            text = chance.choice(
                [chance.randbytes(40), zlib.compress(bytes(10**7)), b"a\0\0" + zlib.compress(bytes(10**7))]
            )
            chunks.insert(index, (chance.choice(CHUNKS), text))
        else:
            chunks[index : index + chance.randint(0, 1)] = chunks[index : index + chance.randrange(3)]
        chunks = chunks or [(b"IEND", b"")]
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    ]
    return content[:8] + b"".join(parts)


def mutated_tar(content: bytes, chance: random.Random) -> bytes:
    """Return a tar file with changed fields of headers and further headers, all with a right checksum."""
    changed = bytearray(content)
    fields = {
        "name": (0, 100),
        "mode": (100, 8),
        "size": (124, 12),
        "time": (136, 12),
        "link": (157, 100),
        "real": (386, 97),
    }
    for _ in range(chance.randint(1, 3)):
        at = 512 * chance.randrange(max(1, min(20, len(changed) // 512)))
        header = bytearray(changed[at : at + 512]) if chance.random() < 0.6 else bytearray(changed[:512])
        action = chance.random()
        if action < 0.4:
            header[156] = ord(chance.choice(TYPES))
        begin, width = fields[chance.choice(list(fields))]
        sizes = [
            (256**12 - chance.choice([1, 512, 1024, 10**6])).to_bytes(12, "big"),
            b"\x80" + (5 * 2**30).to_bytes(11, "big"),
        ]
        value = chance.choice(
            [*sizes, b"\x80" + b"\xff" * 11, b"77777777777\0", b"-1", b"../../canary/canary", chance.randbytes(20)]
        )
        header[begin : begin + width] = value[:width].ljust(width, b"\0")
        _write_checksum(header)
        block = bytes(header)
        if action > 0.7:
            records = chance.choice(
                [b"14 size=-1024\n", b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n", b"9" * 600 + b" a=b\n"]
            )
            extended = tarfile.TarInfo("x")
            extended.type, extended.size = chance.choice([tarfile.XHDTYPE, tarfile.XGLTYPE]), len(records)
            block = extended.tobuf() + records.ljust(1024, b"\0")[: 512 * (1 + (len(records) > 512))]
            block *= chance.choice([1, 1, 400])
        changed[at : at + chance.choice([0, 512])] = block
    return bytes(changed)


def mutated_archive(content: bytes, chance: random.Random) -> bytes:
    """Return what `torch.save` writes with a changed pickle or changed numbers, with right checksums."""
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as parts, zipfile.ZipFile(result, "w") as written:
        names = parts.namelist()
        target = chance.choice([name for name in names if name.endswith("data.pkl")] + names[:1])
        packed = zipfile.ZIP_DEFLATED if chance.random() < 0.1 else zipfile.ZIP_STORED
        for name in names:
            data = parts.read(name)
            if name == target:
                data = (mutated_pickle if chance.random() < 0.4 else mutated_bytes)(data, chance)
            written.writestr(name, data, packed)
    return result.getvalue()


def mutated_pickle(content: bytes, chance: random.Random) -> bytes:
    """Return a pickle with random opcodes in it or instead of it; some would run a program."""
    runs = chance.choice([b"cposix\nsystem\n", b"cbuiltins\nexec\n", b"ctorch\nload\n", b"cbuiltins\ngetattr\n"])
    program = runs + b"(X" + struct.pack("<I", 6 + len(RUNS)) + b"touch " + RUNS.encode() + b"tR"
    codes = b"".join(_opcode(chance) for _ in range(chance.randint(1, 40)))
    doubled = b")" + b"q\0h\0\x86" * chance.choice([3, 60, 3000])
    inserted = chance.choice([program, codes, codes, doubled, b"}" + doubled + b"K\1s"])
    at = chance.randrange(2, len(content) + 1) if chance.random() < 0.5 else 2
    return content[:at] + inserted + (content[at:] if chance.random() < 0.5 else b".")


def mutated_table(_content: bytes, chance: random.Random) -> bytes:
    """Return a Parquet file whose columns have random types and values."""
    rows = chance.choice([1, 3, 200])
    columns = {name: _column(rows, chance) for name in ("caption", "image", "license", "more")}
    buffer = io.BytesIO()
    how = {"compression": chance.choice(["snappy", "zstd", "gzip", "none"]), "use_dictionary": chance.random() < 0.5}
    pq.write_table(pa.table(columns), buffer, **how, row_group_size=chance.choice([1, 100]))
    return mutated_bytes(buffer.getvalue(), chance) if chance.random() < 0.3 else buffer.getvalue()


def odd_entry(folder: Path, chance: random.Random) -> None:
    """Put something into a folder that a folder of pictures should not hold."""
    name = chance.choice(
        [
            "x.png",
            "0.mask.png",
            "0.txt",
            "metadata.csv",
            "metadata.jsonl",
            "10_dog",
            "x.tar",
            "x\n\x1b[2J.png",
            "é" * 100 + ".jpg",
        ]
    )
    path = folder / name
    path.unlink(missing_ok=True)
    action = chance.randrange(7)
    if action == 0:
        os.mkfifo(path)
    elif action == 1:
        path.symlink_to(chance.choice(["/dev/zero", "/etc/passwd", "../canary", "..", name, "/dev/stdin"]))
    elif action == 2:
        path.mkdir()
    elif action == 3:
        path.write_bytes(POSTSCRIPT)
    elif action == 4:
        with path.open("wb") as file:
            file.truncate(20 * 2**30)  # takes no room on the disk
    elif action == 5:
        path.write_bytes(b"x" * 50_000 + b"," * 200_000 + b"\n" + b"a,b\n" * 300)
    else:
        Path(os.fsencode(folder).decode() + "/\udcff.png").write_bytes(b"x")


def _changed(value: Any, chance: random.Random) -> Any:
    """Return a JSON value in which one place, at any depth, is changed."""
    if not value or not isinstance(value, dict | list) or chance.random() < 0.1:
        if chance.random() < 0.05:
            for _ in range(chance.choice([70, 900])):
                value = [value]
            return value
        return copy.deepcopy(chance.choice(ODD))
    key = chance.choice(list(value)) if isinstance(value, dict) else chance.randrange(len(value))
    action = chance.random()
    if action < 0.1:
        del value[key]
    elif action < 0.15 and isinstance(value, dict):
        value[str(chance.choice(ODD))[:40_000]] = value.pop(key)
    elif action < 0.2 and isinstance(value, list) and len(value) < 100:
        value *= chance.choice([2, 2000])
    else:
        value[key] = _changed(value[key], chance)
    return value


def _write_checksum(header: bytearray) -> None:
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)


def _opcode(chance: random.Random) -> bytes:
    """Return a random opcode of a pickle with an argument of its kind."""
    code = chance.choice(OPCODES)
    kind = code.arg.name if code.arg else ""
    sizes = {"uint1": 1, "uint2": 2, "int4": 4, "uint4": 4, "uint8": 8, "float8": 8}
    if kind in sizes:
        return code.code.encode("latin1") + chance.choice([bytes(sizes[kind]), chance.randbytes(sizes[kind])])
    if kind.endswith(("1", "4", "8")):
        width = int(kind[-1])
        length = chance.choice([0, 3, 255]) if width == 1 else chance.choice([0, 3, 2**31 - 1])
        return code.code.encode("latin1") + length.to_bytes(width, "little") + b"abc"
    if kind == "stringnl_noescape_pair":
        return code.code.encode("latin1") + chance.choice(
            [b"torch\nFloatStorage\n", b"os\nsystem\n", b"collections\nOrderedDict\n"]
        )
    return code.code.encode("latin1") + (b"1\n" if kind else b"")


def _column(rows: int, chance: random.Random) -> Any:
    """Return a column of one of Arrow's types."""
    columns: list[Callable[[], Any]] = [
        lambda: pa.array(["a dog"] * rows),
        lambda: pa.array(["x" * 300_000] * rows).dictionary_encode(),
        lambda: pa.array([None] * rows),
        lambda: pa.array([["a", None]] * rows),
        lambda: pa.array([[]] * rows, pa.list_(pa.string())),
        lambda: pa.array([{"bytes": b"x", "path": None}] * rows),
        lambda: pa.array([{"path": "/dev/zero"}] * rows),
        lambda: pa.array([b"\xff\xfe"] * rows),
        lambda: pa.array([b""] * rows),
        lambda: pa.array([2**60] * rows, pa.date64()),
        lambda: pa.array([2**62] * rows, pa.timestamp("ns", tz="Mars/Olympus")),
        lambda: pa.array([2**62] * rows, pa.duration("s")),
        lambda: pa.array([1.5] * rows),
        lambda: pa.array([True] * rows),
        lambda: pa.array([[[["a"]]]] * rows),
        lambda: pa.array([[("k", 1)]] * rows, pa.map_(pa.string(), pa.int64())),
        lambda: pa.array(["http://127.0.0.1:9/x"] * rows),
        lambda: pa.array([list(range(100_000))] * min(rows, 3) + [[]] * max(0, rows - 3)),
    ]
    return chance.choice(columns)()
