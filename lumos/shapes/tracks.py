"""Blobs of single frames -> the blobs of each object, in order of time."""

from collections.abc import Sequence

import numpy as np

from lumos.shapes.blobs import Blob
from lumos.shapes.colours import lab

FAR = 0.45  # frame widths a thing may have moved between two frames, less what else changed
PLAIN = 0.1  # least strength of what is not fading
BRIEF = 3  # an object is seen in at least this many frames (or in all of a shorter clip)


def find_tracks(blobs: Sequence[Sequence[Blob]]) -> tuple[list[list[Blob]], int]:
    """The blobs of each object, in order of time, and how many strong ones are left over.

    First what is plainly seen; then what is fading goes to the track that it is at the place of.
    """
    most = max((blob.strength for found in blobs for blob in found), default=0.0)
    plain = max(PLAIN, 0.05 * most)  # beside a bright thing in a dark frame there is a glow
    tracks = _link([[blob for blob in found if blob.strength >= plain] for found in blobs])
    least = min(BRIEF, len(blobs))
    objects = [track for track in tracks if len(track) >= least and not _is_fragment(track, len(blobs))]
    specks = sum(map(len, tracks)) - sum(map(len, objects))
    for found in blobs:
        for blob in found:
            if blob.strength < plain and objects:
                _attach(objects, blob)
    return objects, specks


def _is_fragment(track: list[Blob], frames: int) -> bool:
    """A piece that for a short while shows at the edge of something."""
    return len(track) < frames / 3 and all(blob.touches for blob in track)


def _attach(objects: list[list[Blob]], faint: Blob) -> None:
    """Give a faint blob to the object that is at its place, if there is one that is not seen otherwise."""
    for track in sorted(objects, key=lambda track: _distance(_nearest_in_time(track, faint), faint)):
        nearest = _nearest_in_time(track, faint)
        if _distance(nearest, faint) > 0.06:
            return
        if nearest.frame != faint.frame:
            track.append(faint)
            track.sort(key=lambda blob: blob.frame)
            return


def _nearest_in_time(track: list[Blob], blob: Blob) -> Blob:
    return min(track, key=lambda other: abs(other.frame - blob.frame))


def _distance(one: Blob, other: Blob) -> float:
    return float(np.hypot(one.x - other.x, one.y - other.y))


def _link(blobs: Sequence[Sequence[Blob]]) -> list[list[Blob]]:
    """Blobs of the same object: each track goes on with the nearest blob, of its colour if there is one."""
    tracks: list[list[Blob]] = []
    for found in blobs:
        pairs = sorted((_apart(track, blob), i, j) for i, track in enumerate(tracks) for j, blob in enumerate(found))
        taken: set[int] = set()
        grown: set[int] = set()
        for apart, i, j in pairs:
            if apart < FAR and i not in grown and j not in taken:
                tracks[i].append(found[j])
                grown.add(i)
                taken.add(j)
        tracks += [[blob] for j, blob in enumerate(found) if j not in taken]
    return tracks


def _apart(track: list[Blob], blob: Blob) -> float:
    """How unlike the continuation of a track a blob is."""
    last = track[-1]
    near = np.hypot(blob.x - last.x, blob.y - last.y)
    if last.touches:  # it may have been hidden for a while, and its middle is not known well
        near *= 0.5
    elif len(track) > 1 and not track[-2].touches:
        steps = min((blob.frame - last.frame) / (last.frame - track[-2].frame), 6.0)
        ahead_x, ahead_y = last.x + steps * (last.x - track[-2].x), last.y + steps * (last.y - track[-2].y)
        near = min(near, np.hypot(blob.x - ahead_x, blob.y - ahead_y) + 0.02)
    alike = min(track[-6:], key=lambda other: abs(np.log(other.strength / blob.strength)))
    if 0.75 < alike.strength / blob.strength < 1.33:
        colours = min(float(np.linalg.norm(lab(np.array(blob.rgb)) - lab(np.array(alike.rgb)))) / 80, 0.4)
    else:  # fading mixes the colour with the background's, but the difference keeps its direction
        colours = 0.05 if blob.tone @ alike.tone > 0.9 * np.linalg.norm(blob.tone) * np.linalg.norm(alike.tone) else 0.4
    sizes = (0.04 if blob.touches or last.touches else 0.1) * abs(np.log(blob.area / last.area))
    return float(near + colours + sizes)
