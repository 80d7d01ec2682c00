"""The MACs of a dense segmenter from its spec: sizes of `jaxseg.models` into `jaxseg.flops`."""

from jaxseg import flops
from jaxseg.models.atm import AtmSpec
from jaxseg.models.segmenter import HeadSpec, SegmenterSpec


def dense_macs(spec: SegmenterSpec, size: tuple[int, int]) -> flops.ModelMacs:
    """One forward pass on one image of ``size`` (height, width), all tokens alive."""
    vit = spec.vit
    rows, columns = (-(-side // vit.patch) for side in size)
    patches = rows * columns
    backbone = flops.backbone(
        patches,
        vit.width,
        [(vit.depth, patches + vit.class_token)],
        patch_values=3 * vit.patch**2,
        mlp_ratio=vit.mlp_ratio,
        final_norm=vit.final_norm,
    )
    heads = tuple(_head(head, vit.width, patches, size) for head in spec.heads)
    return flops.ModelMacs(backbone, heads, flops.resizes(spec.classes, size))


def _head(head: HeadSpec, token_width: int, tokens: int, size: tuple[int, int]) -> flops.Macs:
    sizes = head.sizes
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
