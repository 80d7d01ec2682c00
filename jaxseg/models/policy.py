"""The policy of CTS and STEP: a small CNN says which windows of patches show one class.

The CNN's map has one cell per 32 x 32 pixels, which is CTS's window of 2 x 2 patches. For larger
windows (dCTS) STEP only says that the same network grades them; here each side has a head of its
own on the mean, maximum and deviation of the cells in the window.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key, UInt8

from jaxseg.losses import Term
from jaxseg.models.efficientnet import LITE0, EfficientNetLite0, Stage
from jaxseg.models.layers import Linear, parameter
from jaxseg.purity import LEFT_OUT, ONE_CLASS, positive_weight, targets_of

CELL = 2  # patches per side of a cell of the CNN's map
PATCH = 16  # pixels
HIDDEN = 64  # between the layers of the head of a larger window
TRUNKS = {
    "lite0": LITE0,
    "smoke": tuple(Stage(1, 3, 1 if i == 0 else 2, 1 + i // 2, 8) for i in range(5)),  # for tests
}


@dataclass(frozen=True)
class PolicySpec:
    """``sides``: windows that are graded, in patches; 2 is CTS, (2, 4, 8, 16) dCTS.

    trunk: one of `TRUNKS`.
    For training: ``classes`` of the labels; ``purity`` per side, the share of pixels that the
    largest class of a window must have; ``border``: see `jaxseg.purity.window_targets`.
    """

    sides: tuple[int, ...]
    trunk: str = "lite0"
    classes: int = 0
    purity: tuple[float, ...] = ()
    border: bool = False

    def make(self, batch_axis: str | None = None) -> "Policy":
        return Policy(self, batch_axis)


@dataclass(frozen=True)
class OracleSpec:
    """Windows that are given instead of graded: the bound that every policy is read against."""

    sides: tuple[int, ...]

    def make(self, batch_axis: str | None = None) -> "Oracle":
        del batch_axis
        return Oracle(self)


class Oracle(nnx.Module):
    """Its parameters are the answer for one batch: a logit per window, side after side."""

    def __init__(self, spec: OracleSpec):
        self.spec = spec
        self.windows = nnx.List([parameter() for _ in spec.sides])

    def __call__(self, images: Float[Array, "B H W 3"]) -> dict[int, Float[Array, "B R C"]]:
        del images
        return {s: w[...] for s, w in zip(self.spec.sides, self.windows, strict=True)}


class WindowHead(nnx.Module):
    """One logit per window from the cells in it."""

    def __init__(self, width: int):
        self.hidden = Linear(3 * width, HIDDEN)
        self.out = Linear(HIDDEN, 1)

    def __call__(self, cells: Float[Array, "B R C n F"]) -> Float[Array, "B R C"]:
        mean = cells.mean(axis=3)
        # The epsilon keeps the gradient of the root finite in windows of equal cells.
        deviation = jnp.sqrt(jnp.square(cells - mean[:, :, :, None]).mean(axis=3) + 1e-6)
        read = jnp.concatenate([mean, cells.max(axis=3), deviation], axis=-1)
        return self.out(jnp.clip(self.hidden(read), 0.0, 6.0))[..., 0]


class Policy(nnx.Module):
    """Images in, a logit per window out. ``key`` None means inference: running statistics."""

    def __init__(self, spec: PolicySpec, batch_axis: str | None = None):
        self.spec = spec
        self.batch_axis = batch_axis
        stages = TRUNKS[spec.trunk]
        self.trunk = EfficientNetLite0(batch_axis, stages)
        self.head = Linear(stages[-1].width, 2)  # CTS's: mixed, one class
        larger = [side for side in spec.sides if side > CELL]
        self.larger = nnx.List([WindowHead(stages[-1].width) for _ in larger])

    def __call__(
        self, images: Float[Array, "B H W 3"], *, training: bool = False
    ) -> dict[int, Float[Array, "B R C"]]:
        """The logit of "shows one class" for every full window, float32, by side."""
        cells = self.trunk(images, training=training).astype(jnp.float32)
        found = {}
        if CELL in self.spec.sides:
            rows, columns = (n // (CELL * PATCH) for n in _padded(images))
            logits = self.head(cells[:, :rows, :columns])
            found[CELL] = logits[..., 1] - logits[..., 0]
        larger = [side for side in self.spec.sides if side > CELL]
        for side, head in zip(larger, self.larger, strict=True):
            found[side] = head(_windows(cells, side // CELL, _padded(images), side * PATCH))
        return found

    def losses(
        self,
        images: Float[Array, "B H W 3"],
        labels: UInt8[Array, "B H W"],
        *,
        key: Key[Array, ""] | None = None,
    ) -> dict[str, Term]:
        """Binary cross entropy, the mean over sides: each gives its part of it as ``loss_SIDE``.

        Windows that are left out do not count.

        CTS weighs all windows alike; with several sides those of one class are weighted by the
        inverse of their share, because large ones are rare (STEP does not say).
        """
        spec = self.spec
        targets = targets_of(labels, spec.sides, PATCH, spec.classes, self.purity, spec.border)
        logits = self(images, training=key is not None)
        terms = {}
        for side in spec.sides:
            heavy = positive_weight(targets[side], self.batch_axis) if len(spec.sides) > 1 else 1.0
            total, count = _cross_entropy(logits[side], targets[side], heavy)
            terms[f"loss_{side}"] = Term(total / len(spec.sides), count)
        return terms

    @property
    def purity(self) -> Mapping[int, float]:
        return dict(zip(self.spec.sides, self.spec.purity, strict=True))


def heads_for(
    arrays: Mapping[str, Array], trained: Sequence[int], sides: Sequence[int]
) -> dict[str, Array]:
    """Arrays of a `Policy` for the sides ``trained``, as one for ``sides`` (some of them) has them.

    Heads of larger windows are named by their position, not by their side.
    """
    at = [side for side in trained if side > CELL]
    found = {name: value for name, value in arrays.items() if not name.startswith("larger.")}
    for i, side in enumerate(side for side in sides if side > CELL):
        start = f"larger.{at.index(side)}."
        found |= {
            f"larger.{i}.{name.removeprefix(start)}": value
            for name, value in arrays.items()
            if name.startswith(start)
        }
    return found


def _padded(images: Float[Array, "B H W 3"]) -> tuple[int, int]:
    """The size that the ViT sees: a partial patch counts as one."""
    return tuple(-(-n // PATCH) * PATCH for n in images.shape[1:3])


def _windows(
    cells: Float[Array, "B r c F"], factor: int, size: tuple[int, int], pixels: int
) -> Float[Array, "B R C n F"]:
    """The cells of each full window."""
    batch, *_, width = cells.shape
    rows, columns = (n // pixels for n in size)
    inside = cells[:, : rows * factor, : columns * factor]
    inside = inside.reshape(batch, rows, factor, columns, factor, width).swapaxes(2, 3)
    return inside.reshape(batch, rows, columns, factor * factor, width)


def _cross_entropy(
    logits: Float[Array, "B R C"], target: UInt8[Array, "B R C"], heavy: float | Float[Array, ""]
) -> Term:
    """``heavy``: weight of a window of one class."""
    graded, pure = target != LEFT_OUT, target == ONE_CLASS
    weight = jnp.where(graded, jnp.where(pure, heavy, 1.0), 0.0)
    loss = jax.nn.softplus(jnp.where(pure, -logits, logits))
    return Term((weight * loss).sum(), weight.sum())
