"""One GLB file (binary glTF 2.0) to a Mesh: vertices, coloured triangles, and animations baked to matrices per bone.

Everything moves by one rule: a vertex is the weighted sum of at most four bones' matrices on its place at rest; a part
without a skin hangs on one bone, its own node. Files are foreign: what is wrong with one is a ValueError of one line.
"""

import io
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

POSES_PER_SECOND = 24
MOST_BYTES = 1 << 26
MOST_ITEMS = 200_000  # vertices, triangles
MOST_NODES = 1_000
MOST_SECONDS = 60.0
MOST_TEXELS = 1 << 24
_TYPES = {5120: np.int8, 5121: np.uint8, 5122: np.int16, 5123: np.uint16, 5125: np.uint32, 5126: np.float32}
_WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}
MOST_ANIMATIONS = 200
MOST_MATRICES = 300_000  # poses * nodes of an animation
_FAULTS = (
    *(ValueError, LookupError, TypeError, AttributeError, ArithmeticError, OSError, EOFError, SyntaxError),
    *(struct.error, Image.DecompressionBombError),
)
_STILL = {"translation": [0, 0, 0], "rotation": [0, 0, 0, 1], "scale": [1, 1, 1]}
Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


class Surface(NamedTuple):
    """Vertices V, each hung on at most four bones, and triangles T."""

    vertices_V3: Floats  # at rest
    normals_V3: Floats
    bones_V4: Ints
    weights_V4: Floats
    triangles_T3: Ints
    colours_T33: Floats  # linear light at each corner
    two_sided_T: NDArray[Any]  # whether its back is drawn too


@dataclass(frozen=True)
class Mesh:
    """What a GLB file shows. J bones, P poses of an animation."""

    surface: Surface
    poses: dict[str, Floats]  # animation name -> matrices_PJ34; "" is the pose at rest


def read_glb(content: bytes, wanted: Callable[[str], bool], hidden: Callable[[str], bool]) -> Mesh:
    """The mesh of a GLB file's bytes, with the animations whose names are wanted and without the nodes that are hidden."""
    try:
        with np.errstate(all="ignore"):
            return _read(content, wanted, hidden)
    except _FAULTS as error:
        reason = " ".join(str(error).split())[:120]
        raise ValueError(
            f"not a GLB file that can be drawn: {type(error).__name__} {reason}; export it as plain glTF 2.0"
        ) from None


def _read(content: bytes, wanted: Callable[[str], bool], hidden: Callable[[str], bool]) -> Mesh:
    if len(content) > MOST_BYTES:
        raise ValueError(f"at most {MOST_BYTES} bytes, got {len(content)}")
    magic, version, _, length, kind = struct.unpack_from("<4sIII4s", content)
    if (magic, version, kind) != (b"glTF", 2, b"JSON"):
        raise ValueError("the header is not that of glTF 2.0")
    if length > len(content) - 20:
        raise ValueError("the file is cut off")
    file = _File(_parse(content[20 : 20 + length]), content[28 + length :])
    order, parents = _hierarchy(file.json["nodes"])
    if any("matrix" in node for node in file.json["nodes"]):
        raise ValueError("nodes have translation, rotation and scale, not a matrix")
    rest = {path: np.array([node.get(path, still) for node in file.json["nodes"]], np.float64) for path, still in _STILL.items()}
    surface, nodes, inverse = _surface(file, hidden)
    bones, same = np.unique(np.c_[nodes, inverse.reshape(-1, 16)], axis=0, return_inverse=True)  # parts share bones
    if surface.bones_V4.min() < 0 or surface.bones_V4.max() >= len(nodes):
        raise ValueError("it points at bones that are not there")

    def posed(paths: dict[str, NDArray[Any]]) -> Floats:
        world = _world(paths, order, parents)
        return (world[:, bones[:, 0].astype(np.int64)] @ bones[:, 1:].reshape(-1, 4, 4))[:, :, :3].astype(np.float32)

    poses = {"": posed({path: values[None] for path, values in rest.items()})}
    for animation in file.json.get("animations", []):
        if wanted(str(animation["name"])) and len(poses) < MOST_ANIMATIONS:
            poses[str(animation["name"])] = posed(_sampled(file, animation, rest))
    arrays: tuple[NDArray[Any], ...] = (*surface, *poses.values())
    if not all(np.isfinite(array).all() for array in arrays):
        raise ValueError("it has numbers that are not finite")
    return Mesh(surface._replace(bones_V4=same.reshape(-1)[surface.bones_V4]), poses)


def _parse(text: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(text)
    except RecursionError:
        raise ValueError("its JSON is nested too deeply") from None
    if not isinstance(parsed, dict):
        raise ValueError("its JSON is not an object")
    return parsed


class _File:
    """The JSON part and the binary part, with typed access."""

    def __init__(self, parsed: dict[str, Any], binary: bytes) -> None:
        self.json = parsed
        self.binary = binary

    def view(self, index: int) -> tuple[bytes, dict[str, Any]]:
        view = self.json["bufferViews"][_natural(index)]
        start = _natural(view.get("byteOffset", 0))
        return self.binary[start : start + _natural(view["byteLength"])], view

    def array(self, index: int) -> NDArray[Any]:
        """An accessor's values, one row per item, normalised integers as floats."""
        accessor = self.json["accessors"][_natural(index)]
        if "sparse" in accessor or "bufferView" not in accessor:
            raise ValueError("sparse accessors are not read")
        count, width = _natural(accessor["count"]), _WIDTHS[accessor["type"]]
        if count > MOST_ITEMS * 3:
            raise ValueError(f"at most {MOST_ITEMS} items, got {count}")
        kind = np.dtype(_TYPES[accessor["componentType"]])
        held, view = self.view(accessor["bufferView"])
        stride = _natural(view.get("byteStride", 0)) or width * kind.itemsize
        shape, strides = (count, width), (stride, kind.itemsize)
        values = np.ndarray(shape, kind, held, _natural(accessor.get("byteOffset", 0)), strides).copy()
        return values.astype(np.float32) / float(np.iinfo(kind.type).max) if accessor.get("normalized") else values


def _natural(value: Any) -> int:
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"an index or size must be a whole number from 0, got {str(value)[:40]!r}")
    return value


def _hierarchy(nodes: list[dict[str, Any]]) -> tuple[list[int], list[int]]:
    """The nodes in an order in which parents come first, and each one's parent (-1: none)."""
    if not 0 < len(nodes) <= MOST_NODES:
        raise ValueError(f"1 to {MOST_NODES} nodes, got {len(nodes)}")
    parents = [-1] * len(nodes)
    for index, node in enumerate(nodes):
        for child in node.get("children", []):
            if parents[_natural(child)] != -1:
                raise ValueError(f"node {child} has two parents")
            parents[child] = index
    order = [index for index, parent in enumerate(parents) if parent == -1]
    for index in order:  # grows while it is read
        order.extend(nodes[index].get("children", []))
    if len(order) != len(nodes):
        raise ValueError("its nodes go round in a circle")
    return order, parents


def _world(paths: dict[str, NDArray[Any]], order: list[int], parents: list[int]) -> NDArray[Any]:
    """World matrices, poses x nodes x 4 x 4, from translations, rotations and scales of poses x nodes."""
    turn = paths["rotation"] / np.maximum(np.linalg.norm(paths["rotation"], axis=-1, keepdims=True), 1e-9)
    x, y, z, w = np.moveaxis(turn, -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    matrices = np.zeros((*x.shape, 4, 4))
    matrices[..., :3, :3] = np.moveaxis(np.array(rows), (0, 1), (-2, -1)) * paths["scale"][..., None, :]
    matrices[..., :3, 3] = paths["translation"]
    matrices[..., 3, 3] = 1
    for node in order:
        if parents[node] >= 0:
            matrices[:, node] = matrices[:, parents[node]] @ matrices[:, node]
    return matrices


def _sampled(file: _File, animation: dict[str, Any], rest: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Translations, rotations and scales of every node at evenly spaced times; linear between keys."""
    channels = []
    for channel in animation["channels"]:
        sampler = animation["samplers"][_natural(channel["sampler"])]
        if channel["target"]["path"] in rest and "node" in channel["target"]:
            times, values = file.array(sampler["input"])[:, 0], file.array(sampler["output"]).astype(np.float64)
            values = values[1::3] if sampler.get("interpolation") == "CUBICSPLINE" else values
            channels.append((channel["target"], times, values))
    seconds = max((float(times[-1]) for _, times, _ in channels), default=0.0)
    if not 0 <= seconds <= MOST_SECONDS:
        raise ValueError(f"an animation of 0 to {MOST_SECONDS:.0f} seconds, got {seconds:.3g}")
    at = np.linspace(0, seconds, max(2, round(seconds * POSES_PER_SECOND) + 1))
    if len(at) * len(rest["scale"]) > MOST_MATRICES:
        raise ValueError(f"an animation of at most {MOST_MATRICES} poses of nodes, got {len(at) * len(rest['scale'])}")
    paths = {path: np.repeat(values[None], len(at), 0) for path, values in rest.items()}
    for target, times, values in channels:
        if target["path"] == "rotation":  # q and -q are one turn: stay on one side
            flips = np.sign((values[1:] * values[:-1]).sum(1))
            values[1:] *= np.cumprod(np.where(flips == 0, 1, flips))[:, None]
        mixed = [np.interp(at, times, column) for column in values.T]
        paths[target["path"]][:, _natural(target["node"])] = np.stack(mixed, -1)
    return paths


def _surface(file: _File, hidden: Callable[[str], bool]) -> tuple[Surface, Ints, NDArray[Any]]:
    """All parts as one, and the node and the inverse matrix at rest of each bone."""
    parts: list[Surface] = []
    nodes: list[int] = []
    inverses: list[NDArray[Any]] = []
    vertices = triangles = 0
    for index, node in enumerate(file.json["nodes"]):
        if "mesh" not in node or hidden(str(node.get("name", ""))):
            continue
        for primitive in file.json["meshes"][_natural(node["mesh"])]["primitives"]:
            if primitive.get("mode", 4) != 4:
                continue
            part, hung, inverse = _part(file, index, primitive)
            moved = part._replace(bones_V4=part.bones_V4 + len(nodes), triangles_T3=part.triangles_T3 + vertices)
            vertices, triangles = vertices + len(part.vertices_V3), triangles + len(part.triangles_T3)
            nodes += hung
            if max(vertices, triangles) > MOST_ITEMS or len(nodes) > 4 * MOST_NODES:
                raise ValueError(f"at most {MOST_ITEMS} vertices and triangles and {4 * MOST_NODES} bones")
            parts.append(moved)
            inverses.append(inverse)
    if not parts:
        raise ValueError("it has no triangles")
    joined = Surface(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
    return joined, np.array(nodes), np.concatenate(inverses)


def _part(file: _File, index: int, primitive: dict[str, Any]) -> tuple[Surface, list[int], NDArray[Any]]:
    """One primitive of a node's mesh, and its bones."""
    node, attributes = file.json["nodes"][index], primitive["attributes"]
    places = file.array(attributes["POSITION"]).astype(np.float32)
    count = len(places)
    triangles = file.array(primitive["indices"])[:, 0] if "indices" in primitive else np.arange(count)
    triangles = triangles[: len(triangles) // 3 * 3].astype(np.int64).reshape(-1, 3)
    if "skin" in node and "JOINTS_0" in attributes:
        skin = file.json["skins"][_natural(node["skin"])]
        nodes = [_natural(joint) for joint in skin["joints"]]
        inverse = file.array(skin["inverseBindMatrices"]).astype(np.float64).reshape(-1, 4, 4).transpose(0, 2, 1)[: len(nodes)]
        joints, weights = file.array(attributes["JOINTS_0"]).astype(np.int64), file.array(attributes["WEIGHTS_0"])
    else:
        nodes, inverse = [index], np.eye(4)[None]
        joints, weights = np.zeros((count, 4), np.int64), np.eye(4, dtype=np.float32)[np.zeros(count, np.int64)]
    if joints.shape != (count, 4) or weights.shape != (count, 4) or places.shape != (count, 3):
        raise ValueError("places, joints and weights must be as many as the vertices")
    if not len(triangles) or triangles.min() < 0 or triangles.max() >= count:
        raise ValueError("a part points at vertices that are not there, or has no triangles")
    weights = np.nan_to_num(weights.astype(np.float32))
    heavy = weights.sum(1) > 1e-6  # some files have vertices of no weight (not a number): without their triangles
    triangles = triangles[heavy[triangles].all(1)]
    weights = weights / np.where(heavy, weights.sum(1), 1)[:, None]
    if "NORMAL" in attributes:
        normals = file.array(attributes["NORMAL"]).astype(np.float32).reshape(count, 3)
    else:
        normals = np.zeros_like(places)
        one, two, three = places[triangles].transpose(1, 0, 2)
        np.add.at(normals, triangles, np.cross(two - one, three - one)[:, None])
    material = file.json["materials"][_natural(primitive["material"])] if "material" in primitive else {}
    colours = _colours(file, material, attributes, triangles)
    two_sided = np.full(len(triangles), material.get("doubleSided") is True)
    surface = Surface(places, np.nan_to_num(normals), joints, weights.astype(np.float32), triangles, colours, two_sided)
    return surface, nodes, inverse


def _colours(file: _File, material: dict[str, Any], attributes: dict[str, Any], triangles: Ints) -> Floats:
    """Each corner's colour: the material's, times its texture's there, times the vertex's own."""
    paint = material.get("pbrMetallicRoughness", {})
    colours = np.tile(np.array(paint.get("baseColorFactor", [1, 1, 1, 1]), np.float32)[:3], (len(triangles), 3, 1))
    if "baseColorTexture" in paint and "TEXCOORD_0" in attributes:
        corner = file.array(attributes["TEXCOORD_0"]).astype(np.float32)[triangles]
        # A little inside the triangle: a corner lies on the border of two colours of the texture.
        corner = 0.8 * corner + 0.2 * corner.mean(1, keepdims=True)
        texels = _texture(file, paint["baseColorTexture"]["index"])
        spot = (corner % 1 * np.array(texels.shape[1::-1])).astype(np.int64)
        colours = colours * texels[np.minimum(spot[..., 1], len(texels) - 1), np.minimum(spot[..., 0], texels.shape[1] - 1)]
    if "COLOR_0" in attributes:
        colours = colours * file.array(attributes["COLOR_0"]).astype(np.float32)[triangles][..., :3]
    return colours.astype(np.float32)


def _texture(file: _File, index: int) -> Floats:
    image = file.json["images"][_natural(file.json["textures"][_natural(index)]["source"])]
    with Image.open(io.BytesIO(file.view(image["bufferView"])[0]), formats=("PNG", "JPEG")) as opened:
        if opened.width * opened.height > MOST_TEXELS:
            raise ValueError(f"textures of at most {MOST_TEXELS} texels, got {opened.width}x{opened.height}")
        return np.asarray((np.asarray(opened.convert("RGB"), np.float32) / 255) ** 2.2, np.float32)
