"""EfficientNet-Lite0 as a trunk: the network that grades windows in CTS and STEP.

Lite0 is EfficientNet-B0 without squeeze-and-excitation and with ReLU6 (timm: "efficientnet_lite0").
Convolutions pad k//2 on both sides, as PyTorch does; weights of "tf_efficientnet_lite0" have the
same names but want the other padding and another epsilon. CTS reads the last stage, at stride 32.

On a CPU two things decide the speed. XLA has no kernel of its own for depthwise convolutions there
and is slow at them: a sum of shifted products is one fused loop. And the widened maps of the early
blocks, 25 MB at 512x512, do not fit the caches: at inference a block walks over stripes of rows,
from its narrow input to its narrow output. Together: seven to nine times as fast.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxseg.flops import Macs
from jaxseg.models.layers import BatchNorm, Conv, parameter

STRIPE = 2**21  # values of a block's widened map at a time: 8 MB in float32
STEM = 32  # channels behind the first convolution, at stride 2


class Stage(NamedTuple):
    """``blocks`` of one kernel size; the first has the stride, all widen by ``expand``."""

    blocks: int
    size: int
    stride: int
    expand: int
    width: int


LITE0 = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)


def _on_cpu() -> bool:
    return jax.default_backend() == "cpu"


class Depthwise(nnx.Module):
    """Convolution of every channel by itself, without bias; kernel [k, k, C], k odd."""

    def __init__(self, width: int, size: int, stride: int):
        self.kernel = parameter(size, size, width)
        self.stride = stride

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w C"]:
        """h = ceil(H / stride), w = ceil(W / stride); zeros beyond the edges."""
        kernel = self.kernel[...]
        if _on_cpu():
            return self._inside(jnp.pad(x, ((0, 0), *[(len(kernel) // 2,) * 2] * 2, (0, 0))))
        return _convolve(x, kernel[:, :, None], self.stride, groups=x.shape[-1])

    def without_rows(self, x: Float[Array, "B R W C"]) -> Float[Array, "B h w C"]:
        """Only where the kernel lies between the first and last row; products shifted and added."""
        reach = len(self.kernel[...]) // 2
        return self._inside(jnp.pad(x, ((0, 0), (0, 0), (reach, reach), (0, 0))))

    def _inside(self, x: Float[Array, "B R C D"]) -> Float[Array, "B h w D"]:
        # Else XLA may compute the values of x anew for every product.
        x = jax.lax.optimization_barrier(x)
        return _shifted(x, self.kernel[...], self.stride).astype(x.dtype)


def _shifted(
    x: Float[Array, "B R C c"], kernel: Float[Array, "k k F"], stride: int
) -> Float[Array, "B h w F"]:
    """Sum over the kernel's places of x, shifted, times the kernel there; c is F or 1; float32.

    Only where the kernel lies inside: h = ceil((R - k + 1) / stride).
    """
    size, (batch, rows, columns, channels) = len(kernel), x.shape
    total = jnp.zeros((), jnp.float32)
    for i in range(size):
        for j in range(size):
            end = (batch, i + rows - size + 1, j + columns - size + 1, channels)
            shifted = jax.lax.slice(x, (0, i, j, 0), end, (1, stride, stride, 1))
            total = total + shifted.astype(jnp.float32) * kernel[i, j].astype(jnp.float32)
    return total


def _convolve(
    x: Float[Array, "B H W C"], kernel: Float[Array, "k k c F"], stride: int, groups: int = 1
) -> Float[Array, "B h w F"]:
    """Padded by k//2 on both sides, which is not "SAME" where the stride is 2."""
    reach = len(kernel) // 2
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [(reach, reach)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


class Stem(nnx.Module):
    """3x3 convolution at stride 2 without bias; kernel [3, 3, 3, out]."""

    def __init__(self, width: int):
        self.kernel = parameter(3, 3, 3, width)

    def __call__(
        self, images: Float[Array, "B H W 3"], *, training: bool
    ) -> Float[Array, "B h w F"]:
        """h = ceil(H / 2), w = ceil(W / 2)."""
        kernel = self.kernel[...]
        if training or not _on_cpu():
            return _convolve(images, kernel, stride=2)
        # XLA's convolution of three channels runs on one thread. Each channel is a shifted map too.
        x = jax.lax.optimization_barrier(jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0))))
        channels = [x[..., i : i + 1] for i in range(x.shape[-1])]
        return sum(_shifted(channel, kernel[:, :, i], 2) for i, channel in enumerate(channels))


class Block(nnx.Module):
    """Widen (1x1), convolve each channel, narrow (1x1); the last is linear.

    ``expand`` 1: nothing to widen (a depthwise-separable convolution). The input is added where it
    has the shape of the output.
    """

    def __init__(self, fan_in: int, stage: Stage, stride: int, batch_axis: str | None):
        self.hidden, self.widens = fan_in * stage.expand, stage.expand > 1
        self.residual = stride == 1 and fan_in == stage.width
        if self.widens:
            self.expand = Conv(fan_in, self.hidden, 1)
            self.expand_norm = BatchNorm(self.hidden, batch_axis)
        self.depthwise = Depthwise(self.hidden, stage.size, stride)
        self.depthwise_norm = BatchNorm(self.hidden, batch_axis)
        self.project = Conv(self.hidden, stage.width, 1)
        self.project_norm = BatchNorm(stage.width, batch_axis)

    def __call__(self, x: Float[Array, "B H W C"], *, training: bool) -> Float[Array, "B h w F"]:
        values = x.shape[1] * x.shape[2] * self.hidden
        if training or not _on_cpu() or not self.widens or values <= STRIPE:
            y = self._narrow(self.depthwise(self._widen(x, training)), training)
        else:
            y = self._in_stripes(x, -(-values // STRIPE))
        return x + y if self.residual else y

    def _widen(self, x: Float[Array, "B R W C"], training: bool) -> Float[Array, "B R W D"]:
        if not self.widens:
            return x
        return jax.nn.relu6(self.expand_norm(self.expand(x), training=training))

    def _narrow(self, x: Float[Array, "B r w D"], training: bool) -> Float[Array, "B r w F"]:
        x = jax.nn.relu6(self.depthwise_norm(x, training=training))
        return self.project_norm(self.project(x), training=training)

    def _in_stripes(self, x: Float[Array, "B H W C"], count: int) -> Float[Array, "B h w F"]:
        """Some rows of the output at a time; neighbouring stripes widen k - 1 rows twice, or so."""
        batch, height = x.shape[:2]
        size, stride = len(self.depthwise.kernel[...]), self.depthwise.stride
        reach, rows = size // 2, -(-height // stride)
        each = -(-rows // count)  # rows of the output
        count, needs = -(-rows // each), (each - 1) * stride + size
        below = max((count - 1) * each * stride + needs - reach - height, 0)
        padded = jnp.pad(x, ((0, 0), (reach, below), (0, 0), (0, 0)))

        def stripe(first):
            some = self._widen(jax.lax.dynamic_slice_in_dim(padded, first, needs, 1), False)
            row = first - reach + jnp.arange(needs)
            # The padding is one of the widened map: what a row of zeros widens to is not zero.
            inside = ((row >= 0) & (row < height))[:, None, None]
            some = jnp.where(inside, some, jnp.zeros((), some.dtype))
            return self._narrow(self.depthwise.without_rows(some), False)

        y = jax.lax.map(stripe, jnp.arange(count) * (each * stride))
        return y.swapaxes(0, 1).reshape(batch, count * each, *y.shape[3:])[:, :rows]


def _blocks(fan_in: int, stage: Stage, batch_axis: str | None) -> nnx.List:
    first = Block(fan_in, stage, stage.stride, batch_axis)
    return nnx.List(
        [first, *(Block(stage.width, stage, 1, batch_axis) for _ in range(stage.blocks - 1))]
    )


class EfficientNetLite0(nnx.Module):
    """Images in, the map of the last stage out; ``stages`` [:n] make a shorter trunk."""

    def __init__(self, batch_axis: str | None = None, stages: tuple[Stage, ...] = LITE0):
        self.stem = Stem(STEM)
        self.stem_norm = BatchNorm(STEM, batch_axis)
        widths = [STEM, *(stage.width for stage in stages)]
        self.stages = nnx.List(
            [
                _blocks(width, stage, batch_axis)
                for width, stage in zip(widths, stages, strict=False)
            ]
        )

    def __call__(
        self, images: Float[Array, "B H W 3"], *, training: bool = False
    ) -> Float[Array, "B h w 320"]:
        """Float32 or the dtype of the parameters; h = ceil(H / 32), w = ceil(W / 32).

        ``training`` normalises with the statistics of the batch and moves the running ones.
        """
        images = images.astype(self.stem.kernel[...].dtype)
        if len(images) > 1 and not training and _on_cpu():
            # Image by image: the activations of one stay in the caches.
            return jax.lax.map(lambda image: self._features(image[None], False)[0], images)
        return self._features(images, training)

    def _features(self, x: Float[Array, "B H W 3"], training: bool) -> Float[Array, "B h w F"]:
        x = self.stem(x, training=training).astype(x.dtype)
        x = jax.nn.relu6(self.stem_norm(x, training=training))
        for blocks in self.stages:
            for block in blocks:
                x = block(x, training=training)
        return x


def efficientnet_macs(size: tuple[int, int], stages: tuple[Stage, ...] = LITE0) -> Macs:
    """Convolutions of the trunk, for one image of ``size`` (height, width).

    Batch normalisation is not counted: at inference it is part of the convolution before it.
    """
    height, width = (-(-side // 2) for side in size)
    channels, parts = STEM, {"stem": height * width * 27 * STEM}
    parts |= {"1x1 convolutions": 0, "depthwise convolutions": 0}
    for stage in stages:
        for i in range(stage.blocks):
            hidden = channels * stage.expand
            if stage.expand > 1:
                parts["1x1 convolutions"] += height * width * channels * hidden
            if i == 0:
                height, width = (-(-side // stage.stride) for side in (height, width))
            parts["depthwise convolutions"] += height * width * hidden * stage.size**2
            parts["1x1 convolutions"] += height * width * hidden * stage.width
            channels = stage.width
    return Macs(parts)
