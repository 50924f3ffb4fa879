"""Photos and animations -> timed pictures, through Pillow: upright, 8 bits, over white."""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from lumos.media.picture import HDR, Header, Picture, Timed, check_size, in_srgb, of_rgb, over_white

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
ANIMATED = ("PNG", "WEBP", "GIF", "AVIF")  # of several pictures in a JPEG or TIFF file the first one is meant
SHORTEST = 0.011  # seconds: what claims less is shown for a tenth of a second, as browsers do
MOMENT = 1e-9  # for which a photo is shown: at any rate it is one frame
# A PNG names its transparent colour in its own bits, and Pillow brings its pixels to 8, those of 16-bit gray excepted.
TO_8_BITS = {"L;2": 85.0, "L;4": 17.0, "RGB;16B": 1 / 256}


def image_header(path: Path) -> Header | None:
    """What a photo or animation says of itself; None for a file that is neither."""
    try:
        with _opened(path) as (image, moving):
            width, height = image.size[:: -1 if image.getexif().get(0x0112, 1) > 4 else 1]
            if not moving:
                return Header("image", width, height)
            shown, tick = _turn_to(image, moving[0]), 0.01 if image.format == "GIF" else 0.001
            return Header("video", width, height, len(moving) * shown, 1 / shown, tick)
    except UnidentifiedImageError:
        return None


def image_pictures(path: Path, start: float) -> Iterator[Timed]:
    """The photo, at the moment asked for, or all frames of an animation."""
    with _opened(path) as (image, moving):
        done = ["first of several frames"] if not moving and getattr(image, "n_frames", 1) > 1 else []
        note = ", ".join(done + ["turned upright"] * (image.getexif().get(0x0112, 1) != 1))
        if not moving:
            _turn_to(image, 0)
            yield start, MOMENT, of_rgb(_rgb(ImageOps.exif_transpose(image), path), note)
        time = 0.0
        for number in moving:
            shown = _turn_to(image, number)
            upright = ImageOps.exif_transpose(image)
            drawn = partial(lambda one, *size: of_rgb(_rgb(one, path)).scaled(*size), upright)  # converted then: few are drawn
            yield time, shown, Picture(*upright.size, drawn, note)
            time += shown


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, range]]:
    """An image, and the numbers of its frames if it moves."""
    try:
        # warnings of large pictures, for which our own rule follows, and of odd EXIF data
        with warnings.catch_warnings(action="ignore"), Image.open(path, formats=IMAGE_FORMATS) as image:
            check_size(path, *image.size)
            image.info["primaries"] = _primaries(path)
            if image.mode.startswith("I;16") and getattr(image, "tag_v2", {}).get(262) == 0:  # which Pillow turns in 8 bits alone
                raise ValueError(f"{path} holds 16-bit pixels whose zero is white; save it as a PNG")
            count = getattr(image, "n_frames", 1) if image.format in ANIMATED else 1
            key, factor = image.info.get("transparency"), TO_8_BITS.get(str(image.tile[0][3]) if image.tile else "", 1.0)
            if factor != 1 and key is not None:
                image.info["transparency"] = tuple(int(k * factor) for k in key) if isinstance(key, tuple) else int(key * factor)
            cover = getattr(image, "default_image", False)  # in a PNG, for viewers that show no animations
            yield image, range(bool(cover), count) if count > 1 + bool(cover) else range(0)
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path} must have fewer pixels ({error}); make it smaller first") from error
    except UnidentifiedImageError:
        raise
    except (OSError, SyntaxError, EOFError) as error:  # Pillow raises SyntaxError for a broken PNG
        raise ValueError(f"{path} is damaged ({error}); copy it again") from error


def _primaries(path: Path) -> int:
    """The kind of colours that an AVIF or PNG file's header names, which Pillow does not look at. ValueError for HDR."""
    with open(path, "rb") as file:
        head = file.read(2**16)
    found = re.search(rb"colrnclx\0(.)\0(.)|cICP(.)(.)", head, re.DOTALL)
    primaries, kind = (number[0] for number in found.groups() if number) if found else (0, 0)
    if kind in HDR:
        raise ValueError(f"{path} is an HDR picture ({HDR[kind]}), which would be read in wrong colours; convert it to SDR")
    return primaries


def _turn_to(image: Any, number: int) -> float:
    """Turn to the next frame: the seconds for which it is shown. What no frame of a GIF covers is noted in its `info`."""
    if image.format == "GIF":
        before, bare = image.info["bare"] if number else 2 * (Image.new("L", image.size, 255),)
        bare = (before if image.disposal_method == 3 else bare).copy()
        if image.disposal_method == 2:
            bare.paste(255, image.dispose_extent)
    image.seek(number)
    image.load()
    if image.format == "GIF":
        image.info["bare"] = bare, bare.copy()
        image.info["bare"][1].paste(0, image.dispose_extent)
    seconds = float(image.info.get("duration") or 0) / 1000
    return seconds if seconds >= SHORTEST else 0.1


def _rgb(image: Image.Image, path: Path) -> NDArray[np.uint8]:
    """An open image as rgb_HWC in sRGB, 8 bits, transparency over white."""
    if image.mode.startswith("I;16"):  # which Pillow's own conversion would clip
        deep_HW = np.asarray(image)
        gray_HW = np.where(deep_HW == image.info.get("transparency", -1), 255, (deep_HW / 257).round()).astype(np.uint8)
        return gray_HW[..., None].repeat(3, axis=-1)
    if image.mode in ("I", "F"):
        raise ValueError(f"{path} holds 32-bit pixels of unknown range; save it as an 8-bit PNG")
    clear = image.has_transparency_data
    profile = image.info.get("icc_profile")
    if clear or image.mode not in ("L", "RGB", "CMYK"):
        image = image.convert("RGBA" if clear else "RGB")
    if "bare" in image.info:  # which Pillow shows in a colour of the palette, and browsers as transparent
        image.paste("white", (0, 0, *image.info["bare"][1].size), image.info["bare"][1])
    if profile:
        with suppress(ImageCms.PyCMSError, OSError):  # viewers ignore a broken one, too
            given = ImageCms.ImageCmsProfile(BytesIO(profile))
            shown = ImageCms.profileToProfile(image, given, ImageCms.createProfile("sRGB"), outputMode="RGBA" if clear else "RGB")
            image = shown or image
    rgb_HWC = over_white(np.asarray(image)) if clear else np.array(image.convert("RGB"))
    return rgb_HWC if profile else in_srgb(rgb_HWC, image.info.get("primaries", 0))
