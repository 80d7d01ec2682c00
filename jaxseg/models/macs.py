"""The MACs of a segmenter from its spec: sizes of `jaxseg.models` into `jaxseg.flops`."""

from collections.abc import Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp

from jaxseg import flops
from jaxseg.execute import Packing, step
from jaxseg.models.atm import AtmSpec
from jaxseg.models.classifier import ClassSpec
from jaxseg.models.efficientnet import efficientnet_macs
from jaxseg.models.mask_transformer import MaskSpec, mask_transformer_macs
from jaxseg.models.network import network, shapes
from jaxseg.models.policy import CELL, HIDDEN, PATCH, TRUNKS, OracleSpec, PolicySpec
from jaxseg.models.segmenter import HeadSpec, SegmenterSpec
from jaxseg.models.sparse import SparseSpec


def dense_macs(spec: SegmenterSpec, size: tuple[int, int]) -> flops.ModelMacs:
    """One forward pass on one image of ``size`` (height, width), all heads, all tokens alive."""
    if isinstance(spec, SparseSpec):
        return _sparse_macs(spec.dense(), size, [_patches(spec, size) + spec.prefix], spec.heads)
    slots = _patches(spec, size) + spec.vit.class_token
    return _macs(spec, size, [slots] * len(spec.heads))


def pruned_macs(
    spec: SegmenterSpec, size: tuple[int, int], alive: Sequence[float]
) -> flops.ModelMacs:
    """As inference runs: the heads that decide and the last one, on the tokens still inside.

    ``alive``: slots, class tokens included, in each stage: up to each exit, or cut of a method that
    chooses tokens, and to the end. Without any that is one stage and the last head alone.
    """
    heads = tuple(spec.heads[i] for i in spec.active)
    if isinstance(spec, SparseSpec):
        return _sparse_macs(spec, size, alive, heads)
    return _macs(replace(spec, heads=heads), size, alive)


def fixed_tokens(spec: SparseSpec, size: tuple[int, int]) -> list[int]:
    """Slots of an image of ``size`` in each stage, as its program packs them.

    For a spec with ``fixed_counts``: nothing is run, shapes tell.
    """
    params, stats = shapes(spec)

    def stages(params, stats, image):
        model = network(spec).bind(params, stats)
        carry = model.begin(image)
        found = [carry.x]
        for number in range(model.stages - 1):
            carry = step(model, Packing(), number, carry)
            found.append(carry.x)
        return found

    image = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    return [x.shape[1] for x in jax.eval_shape(stages, params, stats, image)]


def gmacs_of(
    spec: SegmenterSpec, inputs: Sequence[tuple[int, int]], alive: Sequence[Sequence[float]]
) -> float:
    """`pruned_macs` of all ``inputs`` (sizes) of one image, in 1e9."""
    return sum(
        pruned_macs(spec, size, [float(n) for n in tokens]).gmacs_all_heads
        for size, tokens in zip(inputs, alive, strict=True)
    )


def _macs(spec: SegmenterSpec, size: tuple[int, int], alive: Sequence[float]) -> flops.ModelMacs:
    vit = spec.vit
    ends = [head.taps[-1] + 1 for head in spec.heads]
    layers = [end - begin for begin, end in zip([0, *ends[:-1]], ends, strict=True)]
    backbone = flops.backbone(
        _patches(spec, size),
        vit.width,
        list(zip(layers, alive, strict=True)),
        patch_values=3 * vit.patch**2,
        mlp_ratio=vit.mlp_ratio,
        final_norm=vit.final_norm and ends[-1] == vit.depth,
    )
    heads = tuple(
        _head(head, vit.width, slots - vit.class_token, size)
        for head, slots in zip(spec.heads, alive, strict=True)
    )
    policy = policy_macs(spec.merge.policy, size) if spec.merge else flops.Macs({})
    return flops.ModelMacs(backbone, heads, _resizes(spec, size), policy)


def policy_macs(policy: PolicySpec | OracleSpec, size: tuple[int, int]) -> flops.Macs:
    """What grading the windows of one image takes; labels take nothing."""
    if isinstance(policy, OracleSpec):
        return flops.Macs({})
    stages = TRUNKS[policy.trunk]
    width, rows, columns = stages[-1].width, *(-(-side // PATCH) for side in size)
    each = {side: 2 * width if side == CELL else (3 * width + 1) * HIDDEN for side in policy.sides}
    heads = sum((rows // side) * (columns // side) * macs for side, macs in each.items())
    return efficientnet_macs(size, stages) + flops.Macs({"window heads": heads})


def _sparse_macs(
    spec: SparseSpec, size: tuple[int, int], alive: Sequence[float], heads: Sequence[HeadSpec]
) -> flops.ModelMacs:
    """Half blocks on the tokens of their stage; the decisions; heads on all patches."""
    vit, patches = spec.vit, _patches(spec, size)
    end = 2 * (spec.heads[-1].taps[-1] + 1)
    bounds = [0, *(cut.position for cut in spec.cuts), end]
    tokens = [
        count
        for count, first, last in zip(alive, bounds[:-1], bounds[1:], strict=True)
        for _ in range(first, last)
    ]
    backbone = flops.halves(
        patches,
        vit.width,
        tokens[::2],
        tokens[1::2],
        patch_values=3 * vit.patch**2,
        mlp_ratio=vit.mlp_ratio,
    )
    if vit.final_norm and end == 2 * vit.depth:
        backbone += flops.Macs({"layer norms": 5 * vit.width * (patches + spec.prefix)})
    cuts = [i for i, stop in enumerate(spec.stops) if stop.head is None]
    if cuts:
        before, after = ([float(alive[i + behind]) for i in cuts] for behind in (0, 1))
        decisions = spec.method.macs(vit.width, patches, before, after)
        backbone += flops.Macs({"choices": decisions})
    of_heads = tuple(_head(head, vit.width, patches, size) for head in heads)
    policy = policy_macs(spec.merge.policy, size) if spec.merge else flops.Macs({})
    return flops.ModelMacs(backbone, of_heads, _resizes(spec, size), policy)


def _resizes(spec: SegmenterSpec, size: tuple[int, int]) -> flops.Macs:
    """A classifier answers for the image, not for its pixels."""
    if isinstance(spec.heads[-1].sizes, ClassSpec):
        return flops.Macs({})
    return flops.resizes(spec.classes, size)


def _patches(spec: SegmenterSpec, size: tuple[int, int]) -> int:
    rows, columns = (-(-side // spec.vit.patch) for side in size)
    return rows * columns


def _head(head: HeadSpec, token_width: int, tokens: int, size: tuple[int, int]) -> flops.Macs:
    sizes = head.sizes
    if isinstance(sizes, ClassSpec):
        return flops.Macs({"classifier": token_width * sizes.classes})
    if isinstance(sizes, MaskSpec):
        return mask_transformer_macs(tokens, token_width, sizes.width, sizes.classes, sizes.layers)
    if not isinstance(sizes, AtmSpec):
        return flops.conv_head(
            tokens,
            token_width,
            sizes.channels,
            sizes.classes,
            convs=sizes.convs,
            kernel=sizes.kernel,
            up_scale=sizes.up_scale,
            norm=sizes.norm,
        )
    atm = (token_width, sizes.width, sizes.classes, sizes.layers)
    if len(head.taps) > 1:
        return flops.cascade_head([tokens] * len(head.taps), *atm, size)
    return flops.atm_head(tokens, *atm)
