"""One GLB file (binary glTF 2.0) to a Mesh: vertices, coloured triangles, and animations baked to matrices per bone.

Everything moves by one rule: a vertex is the weighted sum of at most four bones' matrices on its place at rest; a part
without a skin hangs on one bone, its own node. Files are foreign: what is wrong with one is a ValueError of one line.
"""

import io
import json
import struct
from collections.abc import Callable
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
    *(ValueError, LookupError, TypeError, AttributeError, ArithmeticError, OSError, EOFError, SyntaxError, RecursionError),
    *(struct.error, Image.DecompressionBombError),
)
_STILL = {"translation": [0, 0, 0], "rotation": [0, 0, 0, 1], "scale": [1, 1, 1]}
Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


class Surface(NamedTuple):
    """Vertices V, each hung on at most four bones, and triangles T: arrays of a file, tensors of a library."""

    vertices_V3: Any  # at rest
    normals_V3: Any
    bones_V4: Any
    weights_V4: Any
    triangles_T3: Any
    colours_T33: Any  # linear light at each corner
    two_sided_T: Any  # whether its back is drawn too


class Mesh(NamedTuple):
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
        raise ValueError(f"not a GLB file that can be drawn: {type(error).__name__} {reason}") from None


def _read(content: bytes, wanted: Callable[[str], bool], hidden: Callable[[str], bool]) -> Mesh:
    _at_most(MOST_BYTES, "bytes", len(content))
    magic, version, _, length, kind = struct.unpack_from("<4sIII4s", content)
    _refuse((magic, version, kind) != (b"glTF", 2, b"JSON"), "the header is not that of glTF 2.0")
    _refuse(length > len(content) - 20, "the file is cut off")
    file = _File(json.loads(content[20 : 20 + length]), content[28 + length :])
    nodes = file.json["nodes"]
    order, parents = _hierarchy(nodes)
    _refuse(any("matrix" in node for node in nodes), "nodes have translation, rotation and scale, not a matrix")
    rest = {path: np.array([node.get(path, still) for node in nodes], np.float64) for path, still in _STILL.items()}
    surface, hung, inverse = _surface(file, hidden)
    bones, same = np.unique(np.c_[hung, inverse.reshape(-1, 16)], axis=0, return_inverse=True)  # parts share bones
    _refuse(surface.bones_V4.min() < 0 or surface.bones_V4.max() >= len(hung), "it points at bones that are not there")

    def posed(paths: dict[str, NDArray[Any]]) -> Floats:
        world = _world(paths, order, parents)
        return (world[:, bones[:, 0].astype(np.int64)] @ bones[:, 1:].reshape(-1, 4, 4))[:, :, :3].astype(np.float32)

    poses = {"": posed({path: values[None] for path, values in rest.items()})}
    for animation in file.json.get("animations", []):
        if wanted(str(animation["name"])) and len(poses) < MOST_ANIMATIONS:
            poses[str(animation["name"])] = posed(_sampled(file, animation, rest))
    _refuse(not all(np.isfinite(array).all() for array in (*surface, *poses.values())), "it has numbers that are not finite")
    return Mesh(surface._replace(bones_V4=same.reshape(-1)[surface.bones_V4]), poses)


def _refuse(is_wrong: Any, why: str) -> None:
    if is_wrong:
        raise ValueError(why)


def _at_most(most: int, what: str, count: int) -> None:
    _refuse(count > most, f"at most {most} {what}, got {count}")


class _File(NamedTuple):
    """The JSON part and the binary part, with typed access."""

    json: dict[str, Any]
    binary: bytes

    def item(self, kind: str, index: int) -> dict[str, Any]:
        """One of the JSON's accessors, meshes, ..."""
        _refuse(index < 0, f"{kind} are counted from 0, got {index}")
        found: dict[str, Any] = self.json[kind][index]
        return found

    def array(self, index: int) -> NDArray[Any]:
        """An accessor's values, one row per item. NumPy checks that it lies within the file."""
        accessor = self.item("accessors", index)
        _refuse("sparse" in accessor or accessor.get("normalized"), "sparse and normalised accessors are not read")
        count, width, kind = accessor["count"], _WIDTHS[accessor["type"]], np.dtype(_TYPES[accessor["componentType"]])
        _at_most(3 * MOST_ITEMS, "items", count)
        view = self.item("bufferViews", accessor["bufferView"])
        strides = (view.get("byteStride", 0) or width * kind.itemsize, kind.itemsize)
        start = view.get("byteOffset", 0) + accessor.get("byteOffset", 0)
        return np.ndarray((count, width), kind, self.binary, start, strides).copy()

    def texture(self, index: int) -> Floats:
        """Linear light."""
        image = self.item("images", self.item("textures", index)["source"])
        view = self.item("bufferViews", image["bufferView"])
        start = view.get("byteOffset", 0)
        with Image.open(io.BytesIO(self.binary[start : start + view["byteLength"]]), formats=("PNG", "JPEG")) as opened:
            _at_most(MOST_TEXELS, "texels", opened.width * opened.height)
            return np.asarray((np.asarray(opened.convert("RGB"), np.float32) / 255) ** 2.2, np.float32)


def _hierarchy(nodes: list[dict[str, Any]]) -> tuple[list[int], list[int]]:
    """The nodes in an order in which parents come first, and each one's parent (-1: none)."""
    _at_most(MOST_NODES, "nodes", len(nodes))
    parents = [-1] * len(nodes)
    for index, node in enumerate(nodes):
        for child in node.get("children", []):
            parents[child] = index
    order = [index for index, parent in enumerate(parents) if parent == -1]
    for index in order:  # grows while it is read
        order.extend(nodes[index].get("children", []))
    _refuse(len(order) != len(nodes), "its nodes go round in a circle, or one has two parents")
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
        sampler = animation["samplers"][channel["sampler"]]
        if channel["target"]["path"] in rest and "node" in channel["target"]:
            _refuse(sampler.get("interpolation") == "CUBICSPLINE", "animations are linear between keys")
            times, values = file.array(sampler["input"])[:, 0], file.array(sampler["output"]).astype(np.float64)
            channels.append((channel["target"], times, values))
    seconds = max((float(times[-1]) for _, times, _ in channels), default=0.0)
    _refuse(not 0 <= seconds <= MOST_SECONDS, f"an animation of 0 to {MOST_SECONDS:.0f} seconds, got {seconds:.3g}")
    at = np.linspace(0, seconds, max(2, round(seconds * POSES_PER_SECOND) + 1))
    _at_most(MOST_MATRICES, "poses of nodes in an animation", len(at) * len(rest["scale"]))
    paths = {path: np.repeat(values[None], len(at), 0) for path, values in rest.items()}
    for target, times, values in channels:
        if target["path"] == "rotation":  # q and -q are one turn: stay on one side
            flips = np.sign((values[1:] * values[:-1]).sum(1))
            values[1:] *= np.cumprod(np.where(flips == 0, 1, flips))[:, None]
        mixed = [np.interp(at, times, column) for column in values.T]
        paths[target["path"]][:, target["node"]] = np.stack(mixed, -1)
    return paths


def _surface(file: _File, hidden: Callable[[str], bool]) -> tuple[Surface, Ints, NDArray[Any]]:
    """All parts as one, and the node and the inverse matrix at rest of each bone."""
    parts: list[Surface] = []
    hung: list[int] = []
    inverses: list[NDArray[Any]] = []
    vertices = triangles = 0
    for number, node in enumerate(file.json["nodes"]):
        if "mesh" not in node or hidden(str(node.get("name", ""))):
            continue
        for primitive in file.item("meshes", node["mesh"])["primitives"]:
            if primitive.get("mode", 4) != 4:  # points and lines
                continue
            part, nodes, inverse = _part(file, number, primitive)
            parts.append(part._replace(bones_V4=part.bones_V4 + len(hung), triangles_T3=part.triangles_T3 + vertices))
            vertices, triangles = vertices + len(part.vertices_V3), triangles + len(part.triangles_T3)
            hung += nodes
            inverses.append(inverse)
            _at_most(MOST_ITEMS, "vertices and triangles", max(vertices, triangles))
            _at_most(4 * MOST_NODES, "bones", len(hung))
    _refuse(not parts, "it has no triangles")
    return Surface(*map(np.concatenate, zip(*parts, strict=True))), np.array(hung), np.concatenate(inverses)


def _part(file: _File, number: int, primitive: dict[str, Any]) -> tuple[Surface, list[int], NDArray[Any]]:
    """One primitive of a node's mesh, the nodes of its bones, and their inverse matrices at rest."""
    node, attributes = file.json["nodes"][number], primitive["attributes"]
    places = file.array(attributes["POSITION"]).astype(np.float32)
    count = len(places)
    triangles = file.array(primitive["indices"])[:, 0]
    triangles = triangles[: len(triangles) // 3 * 3].astype(np.int64).reshape(-1, 3)
    if "skin" in node and "JOINTS_0" in attributes:
        skin = file.item("skins", node["skin"])
        nodes = [int(joint) for joint in skin["joints"]]
        inverse = file.array(skin["inverseBindMatrices"]).astype(np.float64).reshape(-1, 4, 4).transpose(0, 2, 1)[: len(nodes)]
        joints, weights = file.array(attributes["JOINTS_0"]).astype(np.int64), file.array(attributes["WEIGHTS_0"])
    else:
        nodes, inverse = [number], np.eye(4)[None]
        joints, weights = np.zeros((count, 4), np.int64), np.tile(np.eye(1, 4, dtype=np.float32), (count, 1))
    if joints.shape != (count, 4) or weights.shape != (count, 4) or places.shape != (count, 3):
        raise ValueError("places, joints and weights must be as many as the vertices")
    if min(nodes) < 0 or not len(triangles) or triangles.min() < 0 or triangles.max() >= count:
        raise ValueError("a part points at nodes or vertices that are not there, or has no triangles")
    weights = np.nan_to_num(weights.astype(np.float32))
    heavy = weights.sum(1) > 1e-6  # some files have vertices of no weight (not a number): without their triangles
    triangles = triangles[heavy[triangles].all(1)]
    weights = weights / np.where(heavy, weights.sum(1), 1)[:, None]
    normals = file.array(attributes["NORMAL"]).astype(np.float32).reshape(count, 3)
    material = file.item("materials", primitive["material"])
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
        texels = file.texture(paint["baseColorTexture"]["index"])
        spot = (corner % 1 * np.array(texels.shape[1::-1])).astype(np.int64)
        colours = colours * texels[np.minimum(spot[..., 1], len(texels) - 1), np.minimum(spot[..., 0], texels.shape[1] - 1)]
    if "COLOR_0" in attributes:
        colours = colours * file.array(attributes["COLOR_0"]).astype(np.float32)[triangles][..., :3]
    return colours.astype(np.float32)
