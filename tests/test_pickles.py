"""Pickles of tensors that ask for more memory or time than they have bytes. Code in them: interop/test_content.py."""

import io
import pickle
import zipfile
from pathlib import Path

import pytest
import torch

from moongate.pickles import UNREADABLE, read_pickle


def test_old_and_new_files_of_tensors_are_read(tmp_path: Path) -> None:
    values = {"a": torch.ones(3), "b": {"c": [torch.zeros(2)]}, "sizes": (1, (2, (3,)))}
    for zipped in (True, False):
        torch.save(values, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
        read = read_pickle(tmp_path / "a.pt")
        assert read["a"].tolist() == [1, 1, 1]
        assert read["b"]["c"][0].tolist() == [0, 0]
        assert read["sizes"] == (1, (2, (3,)))


def packed(path: Path, *, size: int) -> Path:
    """Return a zip file whose second part is packed to a thousandth."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as parts:
        parts.writestr("archive/data.pkl", b"\x80\x02}.")
        parts.writestr("archive/data/0", b"\0" * size)
    return path


def test_a_pickle_whose_parts_are_packed_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="its parts are packed"):
        read_pickle(packed(tmp_path / "bomb.pt", size=10**7))


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(1).expand(2**40),
        torch.zeros(4).as_strided((2**20, 2**20), (0, 0)),
        torch.eye(3).to_sparse(),
        torch.zeros(3, dtype=torch.complex64),
        torch.ones(3, device="meta"),
        torch.zeros(0, 2**40),
    ],
    ids=["expanded", "strided", "sparse", "complex", "without numbers", "empty but wide"],
)
def test_tensors_that_are_not_stored_in_full_are_refused(tensor: torch.Tensor, tmp_path: Path) -> None:
    for values in ({"a": tensor}, {"a": {"b": [tensor]}}):
        torch.save(values, tmp_path / "odd.pt")
        with pytest.raises((*UNREADABLE, pickle.UnpicklingError)):
            read_pickle(tmp_path / "odd.pt")


DOUBLED = b")" + b"q\0h\0\x86" * 60
MEMOIZED = b"".join(b"\x94" + b"h%c" % number * 2 + b"\x86" for number in range(60))
"""A tuple that holds one tuple twice, 60 levels deep: walking through it would take 2^60 steps."""


@pytest.mark.parametrize(
    "content",
    [b"}" + DOUBLED + b"K\1s.", b"}(" + DOUBLED + b"K\1u.", b"})" + MEMOIZED + b"K\1s."],
    ids=["as a key", "as one of several keys", "by memo"],
)
def test_tuples_of_tuples_are_refused_before_one_is_a_key(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "old.bin").write_bytes(b"\x80\x02" + content)
    with zipfile.ZipFile(tmp_path / "new.pt", "w") as parts:
        parts.writestr("archive/data.pkl", b"\x80\x02" + content)
    for name in ("old.bin", "new.pt"):
        with pytest.raises(ValueError, match="tuples nested more than 16 deep"):
            read_pickle(tmp_path / name)


def test_a_zip_file_that_only_pytorch_can_open_is_refused(tmp_path: Path) -> None:
    """Python refuses a later version of zip, and PyTorch unpacks it all the same."""
    path = packed(tmp_path / "bomb.pt", size=10**7)
    path.write_bytes(path.read_bytes().replace(b"PK\1\2\x14\x03\x14\0", b"PK\1\2\x14\x03\x63\0"))
    with pytest.raises(UNREADABLE, match=r"zip file version 9.9"):
        read_pickle(path)


def test_tuples_are_found_in_what_pytorch_reads_and_not_in_what_python_finds(tmp_path: Path) -> None:
    """PyTorch goes by the first bytes of a file and by names without capitals; Python by the end and the last name."""
    bomb, end = b"\x80\x02}" + DOUBLED + b"K\1s.", io.BytesIO()
    with zipfile.ZipFile(end, "w") as parts:
        parts.writestr("name", b"content")
    (tmp_path / "before a zip file").write_bytes(bomb + end.getvalue())
    with zipfile.ZipFile(tmp_path / "capitals", "w") as parts:
        parts.writestr("archive/DATA.PKL", bomb)
    with zipfile.ZipFile(tmp_path / "twice", "w") as parts:
        parts.writestr("archive/data.pkl", bomb)
        with pytest.warns(UserWarning, match="Duplicate name"):
            parts.writestr("archive/data.pkl", b"\x80\x02}.")
    for name in ("before a zip file", "capitals", "twice"):
        with pytest.raises(ValueError, match="tuples nested more than 16 deep"):
            read_pickle(tmp_path / name)


def test_tensors_that_share_their_numbers_too_often_are_refused(tmp_path: Path) -> None:
    """Copies of them, which every reader makes, would take many times the size of the file."""
    shared = torch.zeros(1000)
    torch.save({"a": shared, "b": shared.view(10, 100)}, tmp_path / "tied.pt")
    assert set(read_pickle(tmp_path / "tied.pt")) == {"a", "b"}
    torch.save({str(number): shared for number in range(100)}, tmp_path / "bomb.pt")
    with pytest.raises(ValueError, match="its tensors share their numbers"):
        read_pickle(tmp_path / "bomb.pt")
