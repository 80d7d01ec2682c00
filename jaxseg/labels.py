"""The label of every pixel from scores on a coarse grid of tokens, interpolated only where needed.

Each pixel's scores are a weighted mean of a few tokens' scores. Where all tokens that a block of
pixels reads have the same best class, every pixel of the block has it too: nothing is interpolated.
The other blocks, called mixed, are interpolated a few at a time. The labels are those of bilinear
interpolation and argmax over the whole image; the scores of the whole image never exist.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from jaxseg.resize import bilinear_matrix

BLOCK = 8  # pixels: at patch 16 a block reads two tokens; 4 and 16 took nearly twice as long
CHUNK = 128  # mixed blocks per turn of the loop; 64 to 256 take the same time
# Classes compared in one reduction. XLA's CPU backend is fast at an argmax over few classes: 150
# classes took eight times as long by 16 as by 8.
_GROUP = 8


class Axis(NamedTuple):
    """The way from tokens to pixels along one axis: a banded matrix, BLOCK of its rows at a time.

    Output ``BLOCK * b + i`` is ``weights[b, i] @ tokens[first[b] : first[b] + support]``.
    Data, not program: axes of equal shapes share all compiled code.
    """

    first: Int[Array, " blocks"]
    weights: Float[Array, "blocks BLOCK support"]


@functools.lru_cache(maxsize=256)
def axis(n_in: int, steps: tuple[tuple[int, int], ...]) -> Axis:
    """From ``n_in`` tokens through ``steps``: resize to the first number, keep the second from it.

    int32 and float32 numpy; cached, hence read-only. The length is that of the last step, rounded
    up to a multiple of BLOCK by repeating the last output. Raises ValueError: a step that keeps
    more than it has.
    """
    matrix = np.eye(n_in)
    for resized, kept in steps:
        if kept > resized:
            raise ValueError(f"cannot keep {kept} of {resized} outputs: give at most {resized}")
        matrix = bilinear_matrix(len(matrix), resized)[:kept].astype(np.float64) @ matrix
    matrix = np.pad(matrix, ((0, -len(matrix) % BLOCK), (0, 0)), mode="edge")
    blocks = matrix.reshape(-1, BLOCK, n_in)
    read = (blocks > 0).any(axis=1)
    left, right = read.argmax(axis=1), n_in - read[:, ::-1].argmax(axis=1)
    support = int((right - left).max())
    first = np.minimum(left, n_in - support).astype(np.int32)
    band = (first[:, None] + np.arange(support))[:, None]
    weights = np.take_along_axis(blocks, band, axis=2).astype(np.float32)
    first.setflags(write=False)
    weights.setflags(write=False)
    return Axis(first, weights)


def label_map(
    scores: Float[Array, "B r c K"], rows: Axis, columns: Axis
) -> UInt8[Array, "B BLOCK*R BLOCK*C"]:
    """The class of every pixel; of equal scores the lowest class. Meant to be called inside jit.

    Interpolates in float32, so a pixel whose best two scores agree to rounding may have either.
    K is 256 or less. NaN scores give some class below K. The padding to whole blocks is the
    caller's to cut.
    """
    rows, columns = jax.tree.map(jnp.asarray, (rows, columns))
    batch, height, width = len(scores), len(rows.first), len(columns.first)
    low, mixed = _pure_classes(scores, rows, columns)
    rank = jnp.cumsum(mixed.ravel().astype(jnp.int32))  # of each mixed block, from 1
    count = rank[-1]

    def classify(turn, found):
        # Past the last mixed block a chunk is filled up with that block.
        ranks = jnp.minimum(turn * CHUNK + 1 + jnp.arange(CHUNK, dtype=jnp.int32), count)
        block = jnp.searchsorted(rank, ranks, method="scan_unrolled").astype(jnp.int32)
        image, y, x = jnp.unravel_index(block, (batch, height, width))
        tokens = _tokens(rows)[y][:, :, None], _tokens(columns)[x][:, None, :]
        windows = scores[image[:, None, None], *tokens].astype(jnp.float32)
        labels = _argmax(windows, rows.weights[y], columns.weights[x])
        return jax.lax.dynamic_update_slice_in_dim(
            found, labels.reshape(CHUNK, -1), turn * CHUNK, axis=0
        )

    # Labels are listed in the order of the ranks and fetched once, so that nothing is scattered.
    turns = (count + CHUNK - 1) // CHUNK
    found = jnp.zeros((-(-rank.size // CHUNK) * CHUNK, BLOCK**2), jnp.uint8)
    found = jax.lax.fori_loop(0, turns, classify, found)[rank - 1]
    labels = jnp.where(mixed.reshape(-1, 1), found, low.reshape(-1, 1).astype(jnp.uint8))
    labels = labels.reshape(batch, height, width, BLOCK, BLOCK).swapaxes(2, 3)
    return labels.reshape(batch, height * BLOCK, width * BLOCK)


def mixed_blocks(scores: Float[Array, "B r c K"], rows: Axis, columns: Axis) -> Int[Array, " B"]:
    """int32: how many blocks of each image `label_map` interpolates."""
    return jnp.sum(_pure_classes(scores, rows, columns)[1], axis=(1, 2), dtype=jnp.int32)


def _tokens(along: Axis) -> Int[Array, "blocks support"]:
    return along.first[:, None] + jnp.arange(along.weights.shape[-1], dtype=jnp.int32)


def _pure_classes(
    scores: Float[Array, "B r c K"], rows: Axis, columns: Axis
) -> tuple[Int[Array, "B R C"], Bool[Array, "B R C"]]:
    """Per block the lowest best class among the tokens it reads, and whether there are others."""
    best = jnp.argmax(scores, axis=-1).astype(jnp.int32)

    def extreme(pick, start):
        classes = best
        for along in (columns, rows):
            # A window may hold tokens that its block gives no weight: they have no say.
            read = (along.weights > 0).any(axis=1)
            classes = pick(classes[..., _tokens(along)], axis=-1, where=read, initial=start)
            classes = classes.swapaxes(1, 2)
        return classes

    low, high = extreme(jnp.min, scores.shape[-1]), extreme(jnp.max, -1)
    return low, low != high


def _argmax(
    windows: Float[Array, "n sr sc K"],
    rows: Float[Array, "n BLOCK sr"],
    columns: Float[Array, "n BLOCK sc"],
) -> UInt8[Array, "n BLOCK BLOCK"]:
    """The best class of every pixel of n blocks; sums of products, which fuse with the argmax."""
    n, height, width, classes = windows.shape
    best = jnp.full((n, BLOCK, BLOCK), -jnp.inf)
    labels = jnp.zeros((n, BLOCK, BLOCK), jnp.uint8)
    for start in range(0, classes, _GROUP):
        x = windows[..., start : start + _GROUP]
        x = sum(rows[:, :, t, None, None] * x[:, None, t] for t in range(height))
        x = sum(columns[:, None, :, t, None] * x[:, :, None, t] for t in range(width))
        highest = x.max(axis=-1)
        better = highest > best
        best = jnp.where(better, highest, best)
        found = (start + jnp.argmax(x, axis=-1)).astype(jnp.uint8)
        labels = jnp.where(better, found, labels)
    return labels
