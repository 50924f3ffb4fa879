"""Blobs of single frames -> the blobs of each object, in order of time."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

from lumos.evaluation.judge.regions import Blob

TOO_FAR = 0.45  # frame widths a thing may have moved between two frames, less what else changed
SHADOWY = 0.1  # a blob weaker than this, or than a twentieth of the strongest, is haze
LIKE = 30.0  # Lab: parts of one track look no less alike
BRIEF = 3  # an object is seen in at least this many frames (or in all of a shorter clip)

Track = list[Blob]


def find_tracks(blobs: Sequence[Sequence[Blob]]) -> tuple[list[Track], int]:
    """The blobs of each object, in order of time, and how many plain ones are left over."""
    most = max((blob.strength for found in blobs for blob in found), default=0.0)
    plain = max(SHADOWY, 0.05 * most)  # beside a bright thing in a dark frame there is a glow
    tracks = _joined(_link([[blob for blob in found if blob.strength >= plain] for found in blobs]))
    objects = [track for track in tracks if len(track) >= min(BRIEF, len(blobs))]
    # less what for a short while shows at the edge of something
    objects = [track for track in objects if len(track) >= 0.4 * len(blobs) or not all(blob.touches for blob in track)]
    return objects, sum(map(len, tracks)) - sum(map(len, objects))


def _link(blobs: Sequence[Sequence[Blob]]) -> list[Track]:
    """Blobs of the same object: from frame to frame the pairs of tracks and blobs that together are most alike."""
    tracks: list[Track] = []
    for found in blobs:
        apart = np.array([[_apart(track, blob) for blob in found] for track in tracks]).reshape(len(tracks), len(found))
        new = set(range(len(found)))
        # The root: one pair that fits and one that does not are likelier than two that fit half.
        for i, j in zip(*linear_sum_assignment(np.sqrt(np.minimum(apart, TOO_FAR))), strict=True):
            if apart[i, j] < TOO_FAR:
                tracks[i].append(found[j])
                new.remove(j)
        tracks += [[found[j]] for j in sorted(new)]
    return tracks


def _apart(track: Track, blob: Blob) -> float:
    """How unlike the continuation of a track a blob is."""
    last = track[-1]
    near = _way(blob, last) * (0.5 if last.touches else 1.0)  # it may have been hidden, and its middle is not known well
    alike = min(track[-6:], key=lambda other: abs(np.log(other.strength / blob.strength)))  # as opaque
    return float(near + min(_tints_apart(blob, alike) / 80, 0.4) + 0.04 * abs(np.log(blob.area / last.area)))


def _joined(tracks: list[Track]) -> list[Track]:
    """One of two tracks that look alike and are there at different times: a thing that was lost for a while."""
    tracks = sorted(tracks, key=len, reverse=True)
    for one, other in itertools.combinations(tracks, 2):
        if one and other and _may_be_one(one, other):
            one[:] = sorted([*one, *other], key=lambda blob: blob.frame)
            other.clear()
    return [track for track in tracks if track]


def _may_be_one(one: Track, other: Track) -> bool:
    """Whether two tracks may be of one thing: its colour, and no further apart than it may move in the time between."""
    gap, way = min((abs(a.frame - b.frame), _way(a, b)) for a in one for b in other)
    return gap > 0 and _tints_apart(_plainest(one), _plainest(other)) < LIKE and way < 0.15 + 0.1 * gap


def _plainest(track: Track) -> Blob:
    """Where it is strongest, touching nothing if it ever does."""
    return max(track, key=lambda blob: (not blob.touches, blob.strength))


def _way(one: Blob, other: Blob) -> float:
    return math.hypot(one.x - other.x, one.y - other.y)


def _tints_apart(one: Blob, other: Blob) -> float:
    """Distance of two blobs' middle colours in Lab."""
    return float(np.linalg.norm(one.lab - other.lab))
