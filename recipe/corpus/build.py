"""Build pocket's corpus: `python -m recipe.corpus.build --out corpus`.

Writes, below the output folder:

    packages/          the downloaded archives
    cutouts.npz        the rendered views of every object
    pictures.npy       uint8 [n, 128, 128, 3]: the training pictures, then the held-out ones
    scenes.jsonl       for each picture its caption, categories, place, style and split
    concepts/<name>/   train/ pictures with captions, and evaluation/ pictures, of each held-out object
    pool/              captioned regularization pictures
    corpus.json        the options that all of this was made with

A stopped build goes on where it stopped. A folder that was begun with other options is refused.
"""

import base64
import dataclasses
import io
import json
import multiprocessing
import os
import re
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.progress import track

from moongate.errors import CorpusError
from moongate.extras import library
from moongate.files import write_atomically
from moongate.limits import check_count
from recipe.command import command
from recipe.corpus import PICTURES_FILE, SCENES_FILE, packages
from recipe.corpus.catalog import CATALOG, Object, is_example, is_held_out, read_objects
from recipe.corpus.places import PLACES, Panorama
from recipe.corpus.render import fit_square, load_model, render_svg, render_view
from recipe.corpus.scenes import PICTURE_PX, TWO_OBJECT_SHARE, Scene, make_scene

__all__ = ["CorpusOptions", "build"]

LIBRARIES = ("trimesh", "embreex", "scipy", "resvg_py", "OpenEXR")
"""Libraries of the extra `corpus` that building needs."""
PANORAMA_EXPOSURE_LIMIT = 60.0
TURN_DEGREES = 35
"""Largest angle between a view and the category's front, which the catalog gives as `azimuth`."""
PHOTO_SHARE = 0.6
"""Share of photos among the pictures of a category that has both models and drawings, in addition to chance."""
OPTIONS_FILE = "corpus.json"


@dataclass(frozen=True, kw_only=True)
class CorpusOptions:
    """What to build, and how much of it."""

    out: Path = Path("corpus")
    """Output folder. A stopped build in it goes on; finished parts are kept."""
    pictures: int = 96_000
    """Number of training pictures."""
    held_out: int = 2_000
    """Number of pictures of seen objects that are kept out of training, to measure by."""
    pool: int = 2_000
    """Number of regularization pictures."""
    views: int = 24
    """Number of views of each 3-D model."""
    training_views: int = 6
    """Number of training pictures of each example concept."""
    evaluation_views: int = 20
    """Number of evaluation pictures of each example concept."""
    seed: int = 0
    """Seed of all randomness."""
    workers: int = 2
    """Number of processes."""

    def __post_init__(self) -> None:
        for name in ("pictures", "held_out", "pool", "views", "training_views", "evaluation_views", "workers"):
            check_count(name, getattr(self, name))


def build(options: CorpusOptions) -> None:
    """Make every part of the corpus that is not there yet.

    Raises:
        MissingLibrary: a library of the extra `corpus` is not installed.
        CorpusError: a package cannot be had or was altered, or the folder was begun with other options.
    """
    for name in LIBRARIES:
        library(name)
    _claim(options)
    archives = options.out / "packages"
    archives.mkdir(parents=True, exist_ok=True)
    for package in track(packages.ALL, "Packages"):
        packages.fetch(package, archives)
    cutouts = options.out / "cutouts.npz"
    if not cutouts.exists():
        _write_cutouts(archives, cutouts, options)
    if all((options.out / name).exists() for name in (SCENES_FILE, "concepts", "pool")):
        return
    objects, panoramas = read_objects(cutouts), _read_panoramas(archives)
    seen = [item for item in objects if not is_held_out(item)]
    _write_pictures(seen, panoramas, options)
    examples = [item for item in objects if is_example(item)]
    _write_once(options.out / "concepts", lambda folder: _write_concepts(folder, examples, panoramas, options))
    _write_once(options.out / "pool", lambda folder: _write_pool(folder, seen, panoramas, options))


def _claim(options: CorpusOptions) -> None:
    """Write down the options, or compare them with those that the folder was begun with."""
    path = options.out / OPTIONS_FILE
    settings = {name: value for name, value in dataclasses.asdict(options).items() if name not in ("out", "workers")}
    if path.exists():
        earlier = json.loads(path.read_text())
        if differing := [name for name in settings if settings[name] != earlier.get(name)]:
            changes = ", ".join(f"{name} {earlier.get(name)}, now {settings[name]}" for name in differing)
            raise CorpusError(f"{options.out} was begun with other options: {changes}. Choose another --out.")
    elif any((options.out / name).exists() for name in (PICTURES_FILE, SCENES_FILE, "cutouts.npz")):
        raise CorpusError(
            f"{options.out} holds parts of a corpus but no {OPTIONS_FILE}, so their options are unknown. Choose "
            "another --out."
        )
    else:
        write_atomically(path, (json.dumps(settings, indent=1) + "\n").encode())


def _write_once(folder: Path, write: Callable[[Path], None]) -> None:
    """Fill a folder under a temporary name and rename it, unless it is there."""
    if not folder.exists():
        partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        write(partial)
        partial.replace(folder)


# --- cut-outs ---------------------------------------------------------------------------------------------------


def _write_cutouts(archives: Path, path: Path, options: CorpusOptions) -> None:
    arrays: dict[str, np.ndarray] = {}
    rows: list[dict[str, str]] = []
    with tempfile.TemporaryDirectory() as scratch, multiprocessing.Pool(options.workers) as pool:
        jobs = _model_jobs(archives, Path(scratch), options)
        for row, views in track(pool.imap(_render_model, jobs), "3-D models", total=len(jobs)):
            rows.append(row)
            arrays[row["key"]] = views
    for row, view in _drawings(archives):
        rows.append(row)
        arrays[row["key"]] = view[None]
    partial = path.with_name("partial.npz")
    np.savez_compressed(partial, allow_pickle=False, objects=np.array(json.dumps(rows)), **arrays)
    partial.replace(path)


def _model_jobs(archives: Path, scratch: Path, options: CorpusOptions) -> list[tuple[dict[str, str], Path, int, int]]:
    wanted = {key: category for category, entry in CATALOG.items() for key in entry["models"]}
    jobs = []
    for name, content in packages.members(archives / packages.FURNITURE.archive):
        if not name.endswith(".sh3f"):
            continue
        library = Path(name).stem
        folder = scratch / library
        packages.unpack_zip(content, folder)
        for entry in _furniture_entries(next(folder.glob("*FurnitureCatalog.properties"))):
            key = f"{library}/{entry['id'].split('#')[-1]}"
            if key in wanted:
                row = {"key": key, "category": wanted[key], "name": entry["name"].lower(), "kind": "photo"}
                row["creator"] = entry.get("creator", "")
                seed = options.seed + sum(map(ord, key))
                jobs.append((row, folder / entry["model"].lstrip("/"), options.views, seed))
    return jobs


def _furniture_entries(properties: Path) -> list[dict[str, str]]:
    entries: dict[int, dict[str, str]] = defaultdict(dict)
    for line in properties.read_text(encoding="latin-1").splitlines():
        if match := re.match(r"(\w+)#(\d+)=(.*)", line):
            entries[int(match[2])][match[1]] = match[3]
    return list(entries.values())


def _render_model(job: tuple[dict[str, str], Path, int, int]) -> tuple[dict[str, str], np.ndarray]:
    row, path, views, seed = job
    rng = np.random.default_rng(seed)
    model = load_model(path)
    turns = (np.arange(views) + rng.uniform(0.1, 0.9, views)) / views * 2 - 1
    azimuths = CATALOG[row["category"]].get("azimuth", 0) + turns * TURN_DEGREES
    return row, np.stack([render_view(model, azimuth=a, elevation=rng.uniform(4, 28)) for a in azimuths])


def _drawings(archives: Path) -> list[tuple[dict[str, str], np.ndarray]]:
    drawings = []
    for family, package in packages.DRAWN_FAMILIES.items():
        files = dict(packages.members(archives / package.archive))
        icons = json.loads(files["package/icons.json"])
        for category, entry in CATALOG.items():
            for slug in entry["drawings"]:
                if icon := icons["icons"].get(slug) or icons["icons"].get(slug.replace("-", "")):
                    box = tuple(
                        icon.get(side, icons.get(side, default))
                        for side, default in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
                    )
                    row = {"key": f"{family}/{slug}", "category": category, "name": slug.replace("-", " ")}
                    drawings.append((row | {"kind": "drawing"}, render_svg(icon["body"], box=box)))
    renders = dict(packages.members(archives / packages.FLUENT_3D.archive))
    names = json.loads(dict(packages.members(archives / packages.EMOJI_NAMES.archive))["package/data-by-emoji.json"])
    emoji_of = {entry["slug"].replace("_", "-"): emoji for emoji, entry in names.items()}
    for category, entry in CATALOG.items():
        for slug in entry["drawings"]:
            points = "-".join(f"{ord(c):04x}" for c in emoji_of.get(slug, ""))
            if content := renders.get(f"package/assets/{points}.webp"):
                row = {"key": f"fluent-3d/{slug}", "category": category, "name": slug.replace("-", " ")}
                drawings.append((row | {"kind": "3d render"}, fit_square(Image.open(io.BytesIO(content)))))
    return drawings


def _read_panoramas(archives: Path) -> dict[str, Panorama]:
    """Read the equirectangular EXR pictures, the second package's under a `blender-` prefix."""
    panoramas = {}
    for name, content in packages.members(archives / packages.PANORAMAS.archive):
        if name.endswith(".exr.js"):
            payload = re.search(rb"base64,([A-Za-z0-9+/=]+)", content)
            assert payload is not None
            panoramas[Path(name).name.removesuffix(".exr.js")] = _read_exr(base64.b64decode(payload[1]))
    for name, content in packages.members(archives / packages.BLENDER.archive):
        if "/studiolights/world/" in name and name.endswith(".exr"):
            panoramas[f"blender-{Path(name).stem}"] = _read_exr(content)
    return panoramas


def _read_exr(content: bytes) -> Panorama:
    import OpenEXR

    with tempfile.NamedTemporaryFile(suffix=".exr") as file:
        file.write(content)
        file.flush()
        channels = OpenEXR.File(file.name).channels()
    if joined := channels.get("RGB") or channels.get("RGBA"):
        pixels = joined.pixels[..., :3]
    else:
        pixels = np.stack([channels[c].pixels for c in "RGB"], -1)
    pixels = np.nan_to_num(pixels.astype(np.float32), nan=np.inf)
    overflown = (pixels > PANORAMA_EXPOSURE_LIMIT).any(-1, keepdims=True)  # the sun: white, not one channel's color
    return np.where(overflown, PANORAMA_EXPOSURE_LIMIT, pixels).clip(0)


# --- pictures ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class _Painter:
    """Everything that scene number i follows from."""

    by_category: Mapping[str, Sequence[Object]]
    panoramas: Mapping[str, Panorama]
    seed: int

    @classmethod
    def of(cls, objects: Sequence[Object], panoramas: Mapping[str, Panorama], seed: int) -> "_Painter":
        by_category: dict[str, list[Object]] = defaultdict(list)
        for item in objects:
            by_category[item.category].append(item)
        return cls(by_category=by_category, panoramas=panoramas, seed=seed)

    def scene(self, index: int) -> Scene:
        rng = np.random.default_rng([self.seed, index])
        return make_scene(self._objects(rng), rng=rng, panoramas=self.panoramas)

    def _objects(self, rng: np.random.Generator) -> list[Object]:
        """Choose one object of a random category, or two of different categories and the same kind."""
        categories = list(self.by_category)
        in_category = self.by_category[categories[rng.integers(len(categories))]]
        kinds = sorted({item.kind for item in in_category})
        kind = "photo" if "photo" in kinds and rng.random() < PHOTO_SHARE else kinds[rng.integers(len(kinds))]
        of_kind = [item for item in in_category if item.kind == kind]
        first = of_kind[rng.integers(len(of_kind))]
        if rng.random() >= TWO_OBJECT_SHARE:
            return [first]
        others = [
            category
            for category in categories
            if category != first.category and any(item.kind == kind for item in self.by_category[category])
        ]
        partners = [item for item in self.by_category[others[rng.integers(len(others))]] if item.kind == kind]
        return [first, partners[rng.integers(len(partners))]]


_painter: _Painter
"""The painter of a worker process."""


def _hold(painter: _Painter) -> None:
    global _painter
    _painter = painter


def _paint(index: int) -> Scene:
    return _painter.scene(index)


def _labels(scene: Scene) -> dict[str, Any]:
    return {"caption": scene.caption, "categories": scene.categories, "place": scene.place, "style": scene.style}


def _write_pictures(seen: Sequence[Object], panoramas: Mapping[str, Panorama], options: CorpusOptions) -> None:
    """Paint the pictures that are not there yet; the captions get their final name when all are."""
    if (options.out / SCENES_FILE).exists():
        return
    total = options.pictures + options.held_out
    shape, path = (total, PICTURE_PX, PICTURE_PX, 3), options.out / PICTURES_FILE
    partial = options.out / f"{SCENES_FILE}.partial"
    done = _whole_lines(partial) if path.exists() else 0
    pictures = np.lib.format.open_memmap(path, mode="r+" if done else "w+", dtype=np.uint8, shape=shape)
    painter = _Painter.of(seen, panoramas, options.seed)
    with (
        multiprocessing.Pool(options.workers, initializer=_hold, initargs=(painter,)) as pool,
        partial.open("a" if done else "w") as lines,
    ):
        scenes = pool.imap(_paint, range(done, total), chunksize=64)
        for index, scene in enumerate(track(scenes, "Pictures", total=total - done), start=done):
            pictures[index] = scene.picture
            split = "train" if index < options.pictures else "held out"
            lines.write(json.dumps(_labels(scene) | {"split": split}) + "\n")
    pictures.flush()
    partial.replace(options.out / SCENES_FILE)


def _whole_lines(path: Path) -> int:
    """Cut off what follows the last line end of a file, if there is one, and count its lines."""
    if not path.exists():
        return 0
    content = path.read_bytes()
    os.truncate(path, content.rfind(b"\n") + 1)
    return content.count(b"\n")


def _write_concepts(
    root: Path, held_out: Sequence[Object], panoramas: Mapping[str, Panorama], options: CorpusOptions
) -> None:
    """Show each view of a concept in another place; evaluation pictures share no view with the training pictures."""
    for item in track(held_out, "Concepts"):
        rng = np.random.default_rng([options.seed, sum(map(ord, item.key))])
        order = rng.permutation(len(item.views))
        name = item.key.split("/")[-1]
        name = f"drawn-{name}" if item.kind == "drawing" else name
        training, evaluation = order[: len(order) // 3], order[len(order) // 3 :]
        if item.kind == "drawing":  # there is only one view; the places differ
            training = evaluation = order
        for part, views, count in (
            ("train", training, options.training_views),
            ("evaluation", evaluation, options.evaluation_views),
        ):
            folder = root / name / part
            folder.mkdir(parents=True)
            places = [*rng.permutation(PLACES), *rng.permutation(PLACES)]
            for index in range(count):
                single = dataclasses.replace(item, name=item.category, views=[item.views[views[index % len(views)]]])
                place = str(places[index % len(places)])
                scene = make_scene([single], rng=rng, panoramas=panoramas, place=place, style=item.kind, size="medium")
                Image.fromarray(scene.picture).save(folder / f"{index:02d}.webp", quality=92, method=6)
                if part == "train":
                    (folder / f"{index:02d}.txt").write_text(f"{scene.style} of a {{}} {scene.place}\n")
        note = {"category": item.category, "name": item.name, "style": item.kind, "source": item.key}
        (root / name / "concept.json").write_text(json.dumps(note, indent=1))


def _write_pool(
    folder: Path, seen: Sequence[Object], panoramas: Mapping[str, Panorama], options: CorpusOptions
) -> None:
    """Write captioned pictures with other seeds than the training set; every category is equally likely."""
    painter = _Painter.of(seen, panoramas, options.seed + 1)
    with (folder / "metadata.jsonl").open("w") as lines:
        for index in track(range(options.pool), "Regularization pool"):
            scene = painter.scene(index)
            name = f"{index:04d}.webp"
            Image.fromarray(scene.picture).save(folder / name, quality=85, method=4)
            lines.write(json.dumps({"file_name": name} | _labels(scene)) + "\n")


if __name__ == "__main__":
    command(CorpusOptions, build, description=__doc__)
