import io
import tarfile
from pathlib import Path

import pytest

from moongate.errors import CorpusError
from recipe.corpus import packages


def tarball(files: dict[str, bytes], mode: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def test_debian_and_npm_archives_are_unpacked_without_their_tools(tmp_path: Path) -> None:
    files = {"usr/share/a.txt": b"first", "usr/share/b.txt": b"second"}
    (tmp_path / "npm.tgz").write_bytes(tarball(files, "w:gz"))

    def member(name: str, content: bytes) -> bytes:
        header = f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode()
        return header + content + b"\n" * (len(content) % 2)

    parts = [member("debian-binary", b"2.0"), member("data.tar.xz", tarball(files, "w:xz"))]
    (tmp_path / "debian.deb").write_bytes(b"!<arch>\n" + b"".join(parts))
    for archive in ("npm.tgz", "debian.deb"):
        assert dict(packages.members(tmp_path / archive)) == files
    (tmp_path / "other.deb").write_bytes(b"!<arch>\n" + parts[0])
    with pytest.raises(CorpusError, match=r"holds no data.tar"):
        list(packages.members(tmp_path / "other.deb"))


def test_an_altered_archive_is_refused(tmp_path: Path) -> None:
    package = packages.PANORAMAS
    (tmp_path / package.archive).write_bytes(b"something else")
    with pytest.raises(CorpusError, match=r"is not the pinned @pmndrs/assets 1.7.0: SHA-256"):
        packages.fetch(package, tmp_path)


def test_a_missing_client_is_named_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CorpusError, match=r"(?s)npm pack.*No such file.*Put .*\.tgz into .* by hand"):
        packages.fetch(packages.EMOJI_NAMES, tmp_path)
