"""What is unusual in a set of pictures: outliers, ranked for a person to look at, and groups of near duplicates.

Neither rejects anything. An outlier is a picture that the set's own principal components cannot express, or whose edges
and colours are not like those of the others. That finds blends, shuffled and broken pictures, and honest rarities too. It
cannot see a sixth finger.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

STANDS_OUT = 2.0  # a suspicion that a person is told of
THUMB = 24  # pixels; thumbnails are (24, 24, 3) uint8
_COMPONENTS = 48
_FIT_ON = 2000  # principal components need no more pictures than this, and memory stays bounded
_HASH_BITS = 3
_MOST_COMPARED = 64  # with one picture, in one quarter of the hash
_ALIKE = 10.0  # root mean square difference of thumbnails, of 255

TEXTURE = 6  # numbers of a texture, float32
_TEXTURE_SIDE = 256  # pixels of the short side that it is measured at
_EDGE, _CLEAR, _STRONG = 12, 30, 110  # of 255, from one pixel to the next
_MOST_DEVIATIONS = 8.0  # robust ones that one number may be off: a measure that is constant in a set would rule it
_RIDGE = 0.2  # of robust variances: fewer pictures tell less of how their numbers go together

Bytes = NDArray[np.uint8]


def thumbnail(image: Image.Image) -> bytes:
    """(24, 24, 3) uint8, area-averaged over the whole picture."""
    return image.resize((THUMB, THUMB), Image.Resampling.BOX).tobytes()


def texture(image: Image.Image) -> bytes:
    """(6,) float32: how many edges, how many of the clear ones are not strong, how mixed the colours, the straightest lines, the contrast.

    A blend has more edges, fainter ones, and more colours than either picture; shuffled tiles and what was never decoded
    have edges along whole rows or columns.
    """
    factor = min(image.size) // _TEXTURE_SIDE
    small = image.reduce(factor) if factor > 1 else image
    pixels = np.asarray(small)
    if min(pixels.shape[:2]) < 2:
        return np.zeros(TEXTURE, np.float32).tobytes()
    planes = np.ascontiguousarray(pixels.transpose(2, 0, 1))
    across, down = _steps(planes[:, :, 1:], planes[:, :, :-1]), _steps(planes[:, 1:], planes[:, :-1])
    either = np.maximum(across[:-1], down[:, :-1])
    edges, clear, strong = (float((either >= least).mean()) for least in (_EDGE, _CLEAR, _STRONG))
    red, green, blue = (planes >> 4).astype(np.int64)
    counts = np.bincount(((red << 8) | (green << 4) | blue).ravel())
    shares = counts[counts > 0] / counts.sum()
    column, row = (float(np.sort((part > _EDGE).mean(axis))[-2:].mean()) for part, axis in ((across, 0), (down, 1)))
    found = (
        math.log(edges + 1e-4),
        math.log((clear - strong + 1e-4) / (strong + 1e-4)),
        float(-(shares * np.log(shares)).sum()),
        math.log(column + 0.02),
        math.log(row + 0.02),
        float(pixels.std()),
    )
    return np.array(found, dtype=np.float32).tobytes()


def _steps(one: Bytes, other: Bytes) -> Bytes:
    """The largest absolute difference of a channel, (H, W), of two (3, H, W)."""
    apart: Bytes = (np.maximum(one, other) - np.minimum(one, other)).max(0)
    return apart


def difference_hash(thumb: Bytes) -> int:
    """64-bit dHash of a (24, 24, 3) thumbnail: is each of 8x9 areas brighter than its right neighbour."""
    grey = Image.fromarray(thumb).convert("L").resize((9, 8), Image.Resampling.BOX)
    values = np.asarray(grey, dtype=np.int16)
    bits = (values[:, :-1] > values[:, 1:]).ravel()
    return int(np.packbits(bits).view(">u8")[0])


def suspicion(
    thumbs: Callable[[int, int], Bytes], count: int, textures: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """How unusual each of ``count`` pictures is within the set: 1 is typical, 2 twice as far off as the median.

    ``thumbs(start, stop)`` returns (n, 24, 24, 3) uint8. The score is the root mean square error of a picture rebuilt
    from the set's principal components, over the median of all; or, where it is larger, what ``textures`` (count, 6),
    rows of NaN where unknown, tell. Fewer than 8 pictures have nothing to compare with: 1.
    """
    if count < 8:
        return np.ones(count)
    rare = rare_textures(textures) if textures is not None else np.ones(count)
    chosen = np.arange(count) if count <= _FIT_ON else np.sort(np.random.default_rng(0).permutation(count)[:_FIT_ON])
    sample = np.concatenate([thumbs(int(i), int(i) + 1) for i in chosen]) if count > _FIT_ON else thumbs(0, count)
    flat = sample.reshape(len(sample), -1).astype(np.float32)
    mean = flat.mean(0)
    flat -= mean
    # a few components more than half the pictures would express everything
    basis = principal_components(flat, min(_COMPONENTS, len(sample) // 4))
    residual = np.empty(count)
    for start in range(0, count, 1024):
        stop = min(start + 1024, count)
        part = thumbs(start, stop).reshape(stop - start, -1).astype(np.float32) - mean
        rebuilt = (part @ basis) @ basis.T
        residual[start:stop] = np.sqrt(((part - rebuilt) ** 2).mean(1))
    scores = np.maximum(residual / max(float(np.median(residual)), 1e-6), rare)
    return scores / max(float(np.median(scores)), 1e-6)


def rare_textures(textures: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far each row of (n, 6) is from the bulk, over the median distance: Mahalanobis, of the nearest nine in ten.

    Centre and covariance are those of the rows that are not far off themselves (a few steps of Rousseeuw's and van
    Driessen's minimum covariance determinant, 1999). Rows with NaN get 1.
    """
    known = np.isfinite(textures).all(1)
    scores = np.ones(len(textures))
    if known.sum() < 8:
        return scores
    values = textures[known]
    median = np.median(values, 0)
    spread = np.maximum(1.4826 * np.median(np.abs(values - median), 0), 0.25 * values.std(0) + 1e-6)
    scaled = np.clip((values - median) / spread, -_MOST_DEVIATIONS, _MOST_DEVIATIONS)
    inner = np.ones(len(scaled), dtype=bool)
    ridge = (_RIDGE + 8 / len(scaled)) * np.eye(scaled.shape[1])
    for _ in range(3):
        centred = scaled - scaled[inner].mean(0)
        covariance = centred[inner].T @ centred[inner] / inner.sum() + ridge
        distances = np.sqrt(np.einsum("nd,dn->n", centred, np.linalg.solve(covariance, centred.T)))
        inner = distances <= np.quantile(distances, 0.9)
    scores[known] = distances / max(float(np.median(distances)), 1e-6)
    return scores


def principal_components(centred: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """The first ``count`` of (n, d) centred rows, (d, count) orthonormal, by subspace iteration (Halko et al. 2011, 4.4).

    A whole eigendecomposition of the covariance would take longer than all other checks together.
    """
    width = min(count + 16, *centred.shape)
    basis = np.random.default_rng(0).standard_normal((centred.shape[1], width)).astype(np.float32)
    for _ in range(8):
        basis, _ = np.linalg.qr(centred.T @ (centred @ basis))
    within = centred @ basis
    _, vectors = np.linalg.eigh(within.T @ within)
    found: NDArray[np.float32] = basis @ vectors[:, -count:]
    return found


def near_duplicates(ids: list[int], thumbs: Bytes, hashes: list[int]) -> dict[int, int]:
    """Groups of nearly equal pictures, mirrored ones included: item id to the smallest id of its group.

    Candidates differ in at most 3 of 64 hash bits (found by equal 16-bit quarters), and count when their thumbnails
    differ by less than 4 % of the range. Pictures without a like are absent.
    """
    n = len(ids)
    if n < 2:
        return {}
    mirrored = [difference_hash(t) for t in thumbs[:, :, ::-1]]
    straight = np.array(hashes, dtype=np.uint64)
    flipped = np.array(mirrored, dtype=np.uint64)
    flat = _Pixels(thumbs.reshape(n, -1))
    flat_mirrored = _Pixels(thumbs[:, :, ::-1].reshape(n, -1))
    parent = list(range(n))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for quarter in range(4):
        shift = np.uint64(16 * quarter)
        lists: dict[int, list[int]] = defaultdict(list)
        for i, key in enumerate(((straight >> shift) & np.uint64(0xFFFF)).tolist()):
            lists[key].append(i)
        buckets = {key: np.array(members, dtype=np.int64) for key, members in lists.items()}
        none = np.empty(0, np.int64)
        for hashes_of, pixels in ((straight, flat), (flipped, flat_mirrored)):
            keys = ((hashes_of >> shift) & np.uint64(0xFFFF)).tolist()
            for i in range(n):
                bucket = buckets.get(keys[i], none)
                others = bucket[np.searchsorted(bucket, i, "right") :]
                if not len(others):
                    continue
                other_bits = straight[others] ^ hashes_of[i]
                new = _bit_count(other_bits) <= _HASH_BITS
                for earlier in range(quarter):  # in which it was compared
                    new &= ((other_bits >> np.uint64(16 * earlier)) & np.uint64(0xFFFF)) != 0
                # of very many that look alike to the hash a part is enough: what is truly alike is joined through others
                mine = root(i)
                apart = (j for j in others[new].tolist() if root(j) != mine)
                near = np.fromiter(itertools.islice(apart, _MOST_COMPARED), np.int64)
                if not len(near):
                    continue
                for j in near[flat.distance(near, pixels, i) < _ALIKE].tolist():
                    parent[max(root(i), root(j))] = min(root(i), root(j))
    groups: dict[int, list[int]] = defaultdict(list)
    for i in range(n):
        groups[root(i)].append(i)
    return {ids[i]: min(ids[j] for j in members) for members in groups.values() if len(members) > 1 for i in members}


class _Pixels:
    """(n, d) uint8 as numbers, for many distances."""

    def __init__(self, pixels: Bytes) -> None:
        self.values = pixels.astype(np.float32)
        self.squares = np.einsum("nd,nd->n", self.values, self.values)

    def distance(self, some: NDArray[np.int64], others: _Pixels, one: int) -> NDArray[np.float32]:
        """Root mean square difference of rows ``some`` from row ``one`` of ``others``."""
        products = self.values[some] @ others.values[one]
        squared = self.squares[some] + others.squares[one] - 2 * products
        found: NDArray[np.float32] = np.sqrt(np.maximum(squared, 0) / self.values.shape[1])
        return found


def _bit_count(values: NDArray[np.uint64]) -> NDArray[np.int64]:
    bits: NDArray[np.int64] = np.unpackbits(values.view(np.uint8).reshape(len(values), 8), axis=1).sum(1)
    return bits
