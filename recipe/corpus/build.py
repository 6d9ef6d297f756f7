"""Build the corpus: `python -m moongate.pocket.corpus --out corpus/`.

Writes, below the output folder:

    packages/          the downloaded archives
    cutouts.npz        every object's rendered views
    pictures.npy       uint8 [n, 128, 128, 3]: the training pictures, then the held-out ones
    scenes.jsonl       for each picture its caption, categories, place, style and split
    concepts/<name>/   train/ pictures with captions, and evaluation/ pictures, of each held-out object
    pool/              captioned regularization pictures
"""

import base64
import io
import json
import multiprocessing
import re
import shutil
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from PIL import Image
from rich.progress import track

from recipe.corpus import packages
from recipe.corpus.places import PLACES, Panorama
from recipe.corpus.render import fit_square, load_model, render_svg, render_view
from recipe.corpus.scenes import PICTURE_PX, TWO_OBJECT_SHARE, Object, Scene, make_scene

HERE = Path(__file__).parent
CATALOG: dict[str, dict[str, Any]] = json.loads((HERE / "catalog.json").read_text())
SPLIT: dict[str, dict[str, Any]] = json.loads((HERE / "split.json").read_text())
HELD_OUT_MODELS = {key for keys in SPLIT["models"].values() for key in keys}
PANORAMA_EXPOSURE_LIMIT = 60.0
TURN_DEGREES = 35
"""How far a view is turned from the category's own, which the catalog gives as `azimuth` (0: the front)."""
DRAWN_CONCEPTS = ("cat", "house", "owl", "penguin", "snowman", "teapot")
"""Categories whose held-out drawings become example concepts."""


@dataclass(frozen=True, kw_only=True)
class CorpusOptions:
    """What to build, and how much of it."""

    out: Path = Path("corpus")
    """Output folder; finished stages found in it are not made again."""
    pictures: int = 64_000
    """Training pictures."""
    held_out: int = 2_000
    """Pictures of seen objects kept out of training, for the report."""
    pool: int = 2_000
    """Regularization pictures."""
    views: int = 24
    """Views of each 3-D model."""
    training_views: int = 6
    evaluation_views: int = 20
    seed: int = 0
    workers: int = 2


def build(options: CorpusOptions) -> None:
    """Run every stage of the corpus that is not there yet."""
    archives = options.out / "packages"
    archives.mkdir(parents=True, exist_ok=True)
    for package in track(packages.ALL, "Packages"):
        packages.fetch(package, archives)
    cutouts = options.out / "cutouts.npz"
    if not cutouts.exists():
        _write_cutouts(archives, cutouts, options)
    objects = load_objects(cutouts)
    panoramas = _load_panoramas(archives)
    seen = [item for item in objects if not is_held_out(item)]
    if not (options.out / "scenes.jsonl").exists():
        _write_pictures(seen, panoramas, options)
    _write_concepts([item for item in objects if _is_example(item)], panoramas, options)
    _write_pool(seen, panoramas, options)


def is_held_out(item: Object) -> bool:
    family = item.key.split("/")[0]
    return item.key in HELD_OUT_MODELS or SPLIT["drawing_families"].get(item.category) == family


def _is_example(item: Object) -> bool:
    return is_held_out(item) and (item.kind == "photo" or item.category in DRAWN_CONCEPTS)


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
    found = []
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
                    found.append((row | {"kind": "drawing"}, render_svg(icon["body"], box=box)))
    renders = dict(packages.members(archives / packages.FLUENT_3D.archive))
    names = json.loads(dict(packages.members(archives / packages.EMOJI_NAMES.archive))["package/data-by-emoji.json"])
    emoji_of = {entry["slug"].replace("_", "-"): emoji for emoji, entry in names.items()}
    for category, entry in CATALOG.items():
        for slug in entry["drawings"]:
            points = "-".join(f"{ord(c):04x}" for c in emoji_of.get(slug, ""))
            if content := renders.get(f"package/assets/{points}.webp"):
                row = {"key": f"fluent-3d/{slug}", "category": category, "name": slug.replace("-", " ")}
                found.append((row | {"kind": "3d render"}, fit_square(Image.open(io.BytesIO(content)))))
    return found


def load_objects(path: Path) -> list[Object]:
    with np.load(path) as archive:
        rows = json.loads(str(archive["objects"]))
        return [
            Object(key=r["key"], category=r["category"], name=r["name"], kind=r["kind"], views=archive[r["key"]])
            for r in rows
        ]


def _load_panoramas(archives: Path) -> dict[str, Panorama]:
    """Read the equirectangular EXR pictures, the second package's under a `blender-` prefix."""
    found = {}
    for name, content in packages.members(archives / packages.PANORAMAS.archive):
        if name.endswith(".exr.js"):
            payload = re.search(rb"base64,([A-Za-z0-9+/=]+)", content)
            assert payload is not None
            found[Path(name).name.removesuffix(".exr.js")] = _read_exr(base64.b64decode(payload[1]))
    for name, content in packages.members(archives / packages.BLENDER.archive):
        if "/studiolights/world/" in name and name.endswith(".exr"):
            found[f"blender-{Path(name).stem}"] = _read_exr(content)
    return found


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

_shared: dict[str, Any] = {}


def _pick_objects(by_category: dict[str, list[Object]], rng: np.random.Generator) -> list[Object]:
    """One object of a random category, or two of different categories and the same kind."""
    categories = list(by_category)
    first = by_category[categories[rng.integers(len(categories))]]
    kinds = sorted({item.kind for item in first})
    kind = "photo" if "photo" in kinds and rng.random() < 0.6 else kinds[rng.integers(len(kinds))]
    chosen = [item for item in first if item.kind == kind]
    one = chosen[rng.integers(len(chosen))]
    if rng.random() >= TWO_OBJECT_SHARE:
        return [one]
    others = [c for c in categories if c != one.category and any(i.kind == kind for i in by_category[c])]
    second = [i for i in by_category[others[rng.integers(len(others))]] if i.kind == kind]
    return [one, second[rng.integers(len(second))]]


def _random_scene(index: int) -> Scene:
    rng = np.random.default_rng([_shared["seed"], index])
    return make_scene(_pick_objects(_shared["by_category"], rng), rng=rng, panoramas=_shared["panoramas"])


def _share(seen: list[Object], panoramas: dict[str, Panorama], seed: int) -> None:
    by_category: dict[str, list[Object]] = defaultdict(list)
    for item in seen:
        by_category[item.category].append(item)
    _shared.update(by_category=by_category, panoramas=panoramas, seed=seed)


def _describe(scene: Scene) -> dict[str, Any]:
    return {"caption": scene.caption, "categories": scene.categories, "place": scene.place, "style": scene.style}


def _write_pictures(seen: list[Object], panoramas: dict[str, Panorama], options: CorpusOptions) -> None:
    total = options.pictures + options.held_out
    shape = (total, PICTURE_PX, PICTURE_PX, 3)
    pictures = np.lib.format.open_memmap(options.out / "pictures.npy", mode="w+", dtype=np.uint8, shape=shape)
    partial = options.out / "scenes.partial.jsonl"
    _share(seen, panoramas, options.seed)
    with multiprocessing.Pool(options.workers) as pool, partial.open("w") as lines:
        scenes = pool.imap(_random_scene, range(total), chunksize=64)
        for index, scene in enumerate(track(scenes, "Pictures", total=total)):
            pictures[index] = scene.picture
            split = "train" if index < options.pictures else "held out"
            lines.write(json.dumps(_describe(scene) | {"split": split}) + "\n")
    pictures.flush()
    partial.replace(options.out / "scenes.jsonl")


def _write_concepts(held_out: list[Object], panoramas: dict[str, Panorama], options: CorpusOptions) -> None:
    """Every view of a concept in another place; evaluation pictures share no view with the training pictures."""
    root = options.out / "concepts"
    shutil.rmtree(root, ignore_errors=True)
    for item in track(held_out, "Concepts"):
        rng = np.random.default_rng([options.seed, sum(map(ord, item.key))])
        order = rng.permutation(len(item.views))
        name = item.key.split("/")[-1]
        name = f"drawn-{name}" if item.kind == "drawing" else name
        training, evaluation = order[: len(order) // 3], order[len(order) // 3 :]
        if item.kind == "drawing":  # there is but one view; places tell the pictures apart
            training = evaluation = order
        for part, views, count in (
            ("train", training, options.training_views),
            ("evaluation", evaluation, options.evaluation_views),
        ):
            folder = root / name / part
            folder.mkdir(parents=True)
            places = [*rng.permutation(PLACES), *rng.permutation(PLACES)]
            for number in range(count):
                single = Object(
                    key=item.key, category=item.category, name=item.category, kind=item.kind,
                    views=[item.views[views[number % len(views)]]],
                )  # fmt: skip
                scene = make_scene(
                    [single], rng=rng, panoramas=panoramas, place=str(places[number]), style=item.kind, size="medium"
                )
                Image.fromarray(scene.picture).save(folder / f"{number:02d}.webp", quality=92, method=6)
                if part == "train":
                    (folder / f"{number:02d}.txt").write_text(f"{scene.style} of a {{}} {scene.place}\n")
        note = {"category": item.category, "name": item.name, "style": item.kind, "source": item.key}
        (root / name / "concept.json").write_text(json.dumps(note, indent=1))


def _write_pool(seen: list[Object], panoramas: dict[str, Panorama], options: CorpusOptions) -> None:
    """Captioned pictures, every category equally often, never those of the training set."""
    folder = options.out / "pool"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    _share(seen, panoramas, options.seed + 1)
    with (folder / "metadata.jsonl").open("w") as lines:
        for index in track(range(options.pool), "Regularization pool"):
            scene = _random_scene(index)
            name = f"{index:04d}.webp"
            Image.fromarray(scene.picture).save(folder / name, quality=85, method=4)
            lines.write(json.dumps({"file_name": name} | _describe(scene)) + "\n")


if __name__ == "__main__":
    build(tyro.cli(CorpusOptions, description=__doc__))
