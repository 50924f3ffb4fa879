"""Blobs of single frames -> the blobs of each object, in order of time."""

import itertools
from collections.abc import Sequence

import numpy as np

from lumos.evaluation.judge.colours import lab
from lumos.evaluation.judge.regions import Blob

FAR = 0.45  # frame widths a thing may have moved between two frames, less what else changed
PLAIN = 0.1  # least strength of what is not fading
SURE = 20.0  # Lab: by so much two tracks must look more like themselves with their ends exchanged
LIKE = 30.0  # Lab: parts of one track look no less alike
GHOST = 0.7  # of a track's strength: what is weaker may not be of it
LARGER = 1.4  # than alone: two things seen as one
BRIEF = 3  # an object is seen in at least this many frames (or in all of a shorter clip)


def find_tracks(blobs: Sequence[Sequence[Blob]]) -> tuple[list[list[Blob]], int]:
    """The blobs of each object, in order of time, and how many strong ones are left over.

    First what is plainly seen; then what is fading goes to the track that it is at the place of.
    """
    most = max((blob.strength for found in blobs for blob in found), default=0.0)
    plain = max(PLAIN, 0.05 * most)  # beside a bright thing in a dark frame there is a glow
    tracks = _link([[blob for blob in found if blob.strength >= plain] for found in blobs])
    _untangle(tracks)
    _sort_by_colour(tracks)
    _join_parts(tracks)
    _fill_gaps(tracks)
    _join_parts(tracks)
    least = min(BRIEF, len(blobs))
    objects = [track for track in tracks if len(track) >= least and not _is_fragment(track, len(blobs))]
    specks = sum(map(len, tracks)) - sum(map(len, objects))
    for found in blobs:
        for blob in found:
            if blob.strength < plain and objects:
                _attach(objects, blob)
    _mark_merged(objects)
    return objects, specks


def _untangle(tracks: list[list[Blob]]) -> None:
    """Exchange the ends of two tracks where they touched, if then each looks afterwards more as it did before.

    While things pass each other their colours are mixed, and the nearest blob may be the other one's.
    """
    for one, other in itertools.combinations([track for track in tracks if len(track) >= BRIEF], 2):
        best, swap = SURE, 0
        for frame in sorted({blob.frame for blob in (*one, *other) if blob.touches}):
            (head, tail), (other_head, other_tail) = _cut(one, frame), _cut(other, frame)
            kept = _unlike(head, tail) + _unlike(other_head, other_tail)
            swapped = _unlike(head, other_tail) + _unlike(other_head, tail)
            if kept - swapped > best:
                best, swap = kept - swapped, frame
        if swap:
            (head, tail), (other_head, other_tail) = _cut(one, swap), _cut(other, swap)
            one[:], other[:] = head + other_tail, other_head + tail


def _sort_by_colour(tracks: list[list[Blob]]) -> None:
    """Exchange two tracks' blobs in each frame in which they touch and have each other's colour."""
    for one, other in itertools.combinations([track for track in tracks if len(track) >= BRIEF], 2):
        first, second = _plainest(one), _plainest(other)
        at = {blob.frame: m for m, blob in enumerate(other) if blob.touches}
        for n, blob in enumerate(one):
            if blob.touches and blob.frame in at:
                beside = other[at[blob.frame]]
                kept = _tints_apart(blob, first) + _tints_apart(beside, second)
                if kept - _tints_apart(blob, second) - _tints_apart(beside, first) > SURE:
                    one[n], other[at[blob.frame]] = beside, blob


def _plainest(track: list[Blob]) -> Blob:
    """Where it is strongest, touching nothing if it ever does."""
    return max(track, key=lambda blob: (not blob.touches, blob.strength))


def _cut(track: list[Blob], frame: int) -> tuple[list[Blob], list[Blob]]:
    at = next((i for i, blob in enumerate(track) if blob.frame >= frame), len(track))
    return track[:at], track[at:]


def _unlike(head: list[Blob], tail: list[Blob]) -> float:
    """Distance in Lab of what two parts of a track look like where they touch nothing; 0 if one of them always does."""
    before, after = ([blob for blob in part if not blob.touches] for part in (head, tail))
    if not before or not after:
        return 0.0
    one, other = (max(part, key=lambda blob: blob.strength) for part in (before, after))
    return _tints_apart(one, other)


def _tints_apart(one: Blob, other: Blob) -> float:
    """Distance of two blobs' middle colours in Lab."""
    return float(np.linalg.norm(lab(np.array(one.rgb)) - lab(np.array(other.rgb))))


def _fill_gaps(tracks: list[list[Blob]]) -> None:
    """Give what always touches something, and is only there while another is missing, to that other: it is seen blurred."""
    long = [track for track in tracks if len(track) >= BRIEF]
    for piece in [track for track in long if all(blob.touches for blob in track)]:
        for track in long:
            missing = set(range(track[0].frame, track[-1].frame)) - {blob.frame for blob in track}
            inside = [blob for blob in piece if blob.frame in missing]
            if track is not piece and 2 * len(inside) > len(piece):
                track += inside
                track.sort(key=lambda blob: blob.frame)
                tracks.remove(piece)
                long.remove(piece)
                break


def _join_parts(tracks: list[list[Blob]]) -> None:
    """Make one of two tracks that look alike and are there at different times: a thing that was lost for a while."""
    long = sorted((t for t in tracks if len(t) >= BRIEF or any(not b.touches for b in t)), key=len, reverse=True)
    for one, other in itertools.combinations(long, 2):
        if not one or not other or not _alike(one, other):
            continue
        first, second = _without_ghosts(one), _without_ghosts(other)
        by_frame = {blob.frame: blob for blob in first}
        twice = [(by_frame[blob.frame], blob) for blob in second if blob.frame in by_frame]
        least = 0.5 * float(np.median([blob.area for blob in (*first, *second)]))
        if all(min(a.area, b.area) < least for a, b in twice) and 3 * len(twice) <= len(second) + 1:
            by_frame |= {blob.frame: blob for blob in second if blob.area > getattr(by_frame.get(blob.frame), "area", 0.0)}
            one[:] = [by_frame[frame] for frame in sorted(by_frame)]
            other.clear()
    tracks[:] = [track for track in tracks if track]


def _without_ghosts(track: list[Blob]) -> list[Blob]:
    """A track without the haze of what passes: weaker blobs of another colour, beside something, that it begins and ends with."""
    most = _plainest(track)
    own = [n for n, b in enumerate(track) if not b.touches or b.colour == most.colour or b.strength > GHOST * most.strength]
    return track[own[0] : own[-1] + 1]


def _alike(one: list[Blob], other: list[Blob]) -> bool:
    """Whether two tracks may be of one thing: colour, size, and no further apart than it may move in the time between."""
    first, second = _plainest(one), _plainest(other)
    colours = _tints_apart(first, second)
    sizes = abs(np.log(max(blob.area for blob in one) / max(blob.area for blob in other)))
    gap = min(((abs(a.frame - b.frame), _distance(a, b)) for a in one for b in other if a.frame != b.frame), default=(0, FAR))
    return colours < LIKE and sizes < 0.7 and gap[1] < 0.15 + 0.1 * gap[0]


def _mark_merged(objects: list[list[Blob]]) -> None:
    """Where one that touched something before and after is not seen, it may be inside another: that touches; if it is larger
    than it ever is alone, it is both of them, and neither's place is known."""
    for lost, other in itertools.permutations(objects, 2):
        gaps = [pair for pair in itertools.pairwise(lost) if pair[0].touches and pair[1].touches]
        around = [blob for before, after in gaps for blob in other if _is_between(before, blob, after)]
        alone = max((blob.area for blob in other if not blob.touches and blob not in around), default=1.0)
        for blob in around:
            blob.touches = True
            if blob.area > LARGER * alone:
                other.remove(blob)


def _is_between(before: Blob, blob: Blob, after: Blob) -> bool:
    """Whether a blob is where a thing must be that is not seen in its frame."""
    if not before.frame < blob.frame < after.frame:
        return False
    share = (blob.frame - before.frame) / (after.frame - before.frame)
    x, y = before.x + share * (after.x - before.x), before.y + share * (after.y - before.y)
    return bool(np.hypot(blob.x - x, blob.y - y) < blob.area**0.5)


def _is_fragment(track: list[Blob], frames: int) -> bool:
    """A piece that for a short while shows at the edge of something."""
    return len(track) < 0.4 * frames and all(blob.touches for blob in track)


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
        colours = min(_tints_apart(blob, alike) / 80, 0.4)
    else:  # fading mixes the colour with the background's, but the difference keeps its direction
        colours = 0.05 if blob.tone @ alike.tone > 0.9 * np.linalg.norm(blob.tone) * np.linalg.norm(alike.tone) else 0.4
    sizes = (0.04 if blob.touches or last.touches else 0.1) * abs(np.log(blob.area / last.area))
    new = 0.1 if len(track) < BRIEF and blob.frame >= BRIEF else 0.0  # it may be a ghost of something else
    return float(near + colours + sizes + new)
