"""Cut-outs of single objects: 3-D models by ray casting, drawings by an SVG renderer.

A cut-out is RGBA uint8 [CUTOUT_PX, CUTOUT_PX, 4] with straight alpha. Knows nothing of scenes or captions.
"""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

__all__ = ["CUTOUT_PX", "Model", "fit_square", "load_model", "render_svg", "render_view"]

CUTOUT_PX = 144
SUPERSAMPLING = 2
MAX_TRANSPARENT_LAYERS = 5


@dataclass(frozen=True, kw_only=True)
class Model:
    """A triangle soup with materials, centered and scaled to fit the unit sphere."""

    mesh: Any
    """The `trimesh.Trimesh` that rays are cast at."""
    uv: np.ndarray
    """float32 [faces, 3, 2]: texture coordinates at each corner."""
    normals: np.ndarray
    """float32 [faces, 3, 3]: normals at each corner."""
    material: np.ndarray
    """int [faces]: index into `textures`."""
    textures: list[np.ndarray]
    """One float32 [height, width, 4] picture for each material, 0..1; 1x1 for a plain color."""


def load_model(path: Path) -> Model:
    """Read an OBJ file with its materials and textures (needs trimesh)."""
    import trimesh

    scene = trimesh.load_scene(path, process=False)
    vertices, faces, uv, normals, material = [], [], [], [], []
    textures: list[np.ndarray] = []
    offset = 0
    for part in scene.dump():
        if not isinstance(part, trimesh.Trimesh) or not len(part.faces):
            continue
        corners = part.faces
        vertices.append(part.vertices)
        faces.append(corners + offset)
        offset += len(part.vertices)
        part_uv = getattr(part.visual, "uv", None)
        if part_uv is None or len(part_uv) != len(part.vertices):
            part_uv = np.zeros((len(part.vertices), 2))
        uv.append(part_uv[corners])
        normals.append(np.asarray(part.vertex_normals)[corners])
        material.append(np.full(len(corners), len(textures)))
        textures.append(_texture(getattr(part.visual, "material", None)))
    points = np.concatenate(vertices)
    low, high = points.min(0), points.max(0)
    points = (points - (low + high) / 2) / (np.linalg.norm(high - low) / 2)
    mesh = trimesh.Trimesh(points, np.concatenate(faces), process=False)
    return Model(
        mesh=mesh,
        uv=np.concatenate(uv).astype(np.float32),
        normals=np.concatenate(normals).astype(np.float32),
        material=np.concatenate(material),
        textures=textures,
    )


def _texture(material: Any) -> np.ndarray:
    color = np.array(getattr(material, "diffuse", [178, 178, 178, 255]), dtype=np.float32) / 255
    image = getattr(material, "image", None)
    if image is None:
        return color.reshape(1, 1, 4)
    image.thumbnail((512, 512))
    return np.asarray(image.convert("RGBA"), dtype=np.float32) / 255


def render_view(model: Model, *, azimuth: float, elevation: float) -> np.ndarray:
    """Ray-cast one view; angles in degrees. Transparent texels let the ray through."""
    side = CUTOUT_PX * SUPERSAMPLING
    a, e = np.radians(azimuth), np.radians(elevation)
    forward = -np.array([np.sin(a) * np.cos(e), np.sin(e), np.cos(a) * np.cos(e)])
    right = np.array([np.cos(a), 0.0, -np.sin(a)])
    up = np.cross(right, forward)
    axis = (np.arange(side) + 0.5) / side * 2 - 1
    x, y = np.meshgrid(axis, -axis)
    distance = 4.0
    origin = -forward * distance
    target = (x[..., None] * right + y[..., None] * up).reshape(-1, 3) * 1.02
    directions = target - origin
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    light = -forward * 0.6 + up * 0.8 - right * 0.5
    rgba = _trace(model, np.repeat(origin[None], len(directions), 0), directions, light / np.linalg.norm(light))
    rgba = rgba.reshape(CUTOUT_PX, SUPERSAMPLING, CUTOUT_PX, SUPERSAMPLING, 4).mean((1, 3))
    alpha = rgba[..., 3:]
    straight = rgba[..., :3] / np.maximum(alpha, 1e-4)
    return (np.concatenate([straight, alpha], -1).clip(0, 1) * 255).round().astype(np.uint8)


def _trace(model: Model, origins: np.ndarray, directions: np.ndarray, light: np.ndarray) -> np.ndarray:
    """Return premultiplied RGBA for each ray, front to back."""
    rgba = np.zeros((len(origins), 4), np.float32)
    active = np.arange(len(origins))
    for _ in range(MAX_TRANSPARENT_LAYERS):
        if not len(active):
            break
        hit = model.mesh.ray.intersects_first(origins[active], directions[active])
        active, face = active[hit >= 0], hit[hit >= 0]
        corners = model.mesh.triangles[face]
        d = directions[active]
        edge1, edge2 = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
        p = np.cross(d, edge2)
        determinant = np.einsum("ij,ij->i", edge1, p)
        determinant = np.where(np.abs(determinant) < 1e-12, 1e-12, determinant)
        s = origins[active] - corners[:, 0]
        u = np.einsum("ij,ij->i", s, p) / determinant
        q = np.cross(s, edge1)
        v = np.einsum("ij,ij->i", d, q) / determinant
        t = np.einsum("ij,ij->i", edge2, q) / determinant
        weights = np.stack([1 - u - v, u, v], 1)[..., None]
        color = _sample(model, face, (model.uv[face] * weights).sum(1))
        normal = (model.normals[face] * weights).sum(1)
        length = np.linalg.norm(normal, axis=1, keepdims=True)
        flat = model.mesh.face_normals[face]  # some files carry no usable corner normals
        normal = np.where(length > 0.1, normal / np.maximum(length, 1e-9), flat)
        normal *= -np.sign(np.einsum("ij,ij->i", normal, d))[:, None]
        shade = 0.55 + 0.5 * np.clip(normal @ light, 0, 1)
        remaining = 1 - rgba[active, 3:]
        rgba[active, :3] += remaining * color[:, 3:] * np.clip(color[:, :3] * shade[:, None], 0, 1)
        rgba[active, 3:] += remaining * color[:, 3:]
        origins[active] += d * (t[:, None] + 1e-4)
        active = active[rgba[active, 3] < 0.95]
    return rgba


def _sample(model: Model, face: np.ndarray, uv: np.ndarray) -> np.ndarray:
    color = np.empty((len(face), 4), np.float32)
    materials = model.material[face]
    for index in np.unique(materials):
        texture, chosen = model.textures[index], materials == index
        height, width = texture.shape[:2]
        column = (uv[chosen, 0] % 1 * width).astype(int) % width
        row = ((1 - uv[chosen, 1] % 1) * height).astype(int) % height
        color[chosen] = texture[row, column]
    return color


def render_svg(body: str, *, box: tuple[float, float, float, float]) -> np.ndarray:
    """Render the body of an icon; `box` is left, top, width, height (needs resvg-py)."""
    import resvg_py

    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{" ".join(map(str, box))}">{body}</svg>'
    )
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=CUTOUT_PX, height=CUTOUT_PX))
    return fit_square(Image.open(io.BytesIO(png)))


def fit_square(image: Image.Image) -> np.ndarray:
    """Center a picture with alpha on a transparent square of CUTOUT_PX."""
    image = image.convert("RGBA")
    image.thumbnail((CUTOUT_PX, CUTOUT_PX), Image.Resampling.LANCZOS)
    square = Image.new("RGBA", (CUTOUT_PX, CUTOUT_PX))
    square.paste(image, ((CUTOUT_PX - image.width) // 2, (CUTOUT_PX - image.height) // 2))
    return np.asarray(square)
