"""The kinds of checkpoints that can be converted, told by the names of their arrays."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from jaxseg.convert import sizes
from jaxseg.convert.backbone import AUGREG, MMSEG, SVIT, TIMM, Layout, layout_of
from jaxseg.convert.heads import atm_rules, cascade_rules, conv_rules
from jaxseg.convert.rules import Rule
from jaxseg.convert.segmenter import mask_transformer_rules, mmseg_mask_rules
from jaxseg.errors import UserError

State = Mapping[str, np.ndarray]


class Golden(NamedTuple):
    """What tests/verify_fixture.py finds in a reference file, or in a part of its outputs: the
    largest difference from those of the original code, and the largest that it allows."""

    file: str
    part: str
    error: float
    allowed: float


VIT = Golden("F1_vit_backbone", "", 6.4e-6, 9e-5)
DTOP_MODEL = Golden("F2_dtop_full", "noprune", 4.8e-6, 7e-5)
CASCADE = Golden("F3_segvit_atm", "atm", 1.6e-5, 7e-5)
SETR_NAIVE = Golden("F4_heads", "setr_naive", 1.0e-6, 2e-5)
SETR_PUP = Golden("F4_heads", "setr_pup", 1.6e-6, 2e-5)
MMSEG_DECODER = Golden("F4_heads", "segmenter_mask", 8.9e-6, 8e-5)
TIMM_VIT = Golden("F5_timm_vit", "", 7.0e-6, 9e-5)
SVIT_BLOCKS = Golden("F6_svit_block", "full", 1.9e-6, 4e-5)
CTS = Golden("F7_cts_sharing", "wide/share", 3.2e-6, 5e-5)
LITE0 = Golden("F9_efficientnet_lite0", "efficientnet_lite0", 9.3e-5, 8e-4)
CTS_DENSE = Golden("F7_cts_sharing", "square/noshare", 5.3e-6, 6e-5)


@dataclass(frozen=True)
class Head:
    """The head of a kind: ``kind`` as in config.model.head, the start of its names, an array that
    tells it, what reads its sizes, and its rules by (source, target, levels)."""

    kind: str
    prefix: str
    sign: str
    sizes: Callable[[State, str, str], sizes.HeadSizes]
    rules: Callable[[str, str, int], tuple[Rule, ...]]


@dataclass(frozen=True)
class Kind:
    """A kind of checkpoint; ``head`` None is a ViT alone.

    ``prefix`` starts the names of the ViT. ``fields``: of config.model, as the published models
    have them; ``fixed`` are those that no model of the kind can have otherwise. ``policy``
    starts the names of CTS's policy network, where there is one. ``note`` goes below the parity in
    the card.
    """

    name: str
    title: str
    layout: Layout
    golden: tuple[Golden, ...]
    prefix: str = ""
    head: Head | None = None
    fields: tuple[tuple[str, object], ...] = ()
    fixed: tuple[str, ...] = ()
    policy: str = ""
    note: str = ""


ATM = Head(
    kind="atm",
    prefix="decode_head.",
    sign="input_proj.weight",
    sizes=sizes.atm_sizes,
    rules=lambda source, target, _: atm_rules(source, target),
)
LEVELS = Head(
    kind="cascade",
    prefix="decode_head.",
    sign="input_proj_1.weight",
    sizes=sizes.cascade_sizes,
    rules=cascade_rules,
)
CONV = Head(
    kind="conv",
    prefix="decode_head.",
    sign="up_convs.0.0.conv.weight",
    sizes=sizes.conv_sizes,
    rules=lambda source, target, _: conv_rules(source, target),
)
MASK = Head(
    kind="mask_transformer",
    prefix="decoder.",
    sign="cls_emb",
    sizes=sizes.mask_sizes,
    rules=lambda source, target, _: mask_transformer_rules(source, target),
)
MMSEG_MASK = Head(
    kind="mask_transformer",
    prefix="decode_head.",
    sign="cls_emb",
    sizes=sizes.mmseg_mask_sizes,
    rules=lambda source, target, _: mmseg_mask_rules(source, target),
)

KINDS = (
    Kind(
        name="dtop",
        title="DToP's SegViT",
        layout=MMSEG,
        golden=(DTOP_MODEL,),
        prefix="backbone.",
        head=ATM,
        fields=(("class_token", False), ("norm_epsilon", 1e-6)),
        fixed=("class_token",),
    ),
    Kind(
        name="segvit",
        title="SegViT v1",
        layout=MMSEG,
        golden=(VIT, CASCADE),
        prefix="backbone.",
        head=LEVELS,
        fields=(("class_token", False), ("norm_epsilon", 1e-6)),
        fixed=("class_token",),
    ),
    Kind(
        name="setr",
        title="mmsegmentation's SETR-Naive",
        layout=MMSEG,
        golden=(VIT, SETR_NAIVE),
        prefix="backbone.",
        head=CONV,
        fields=(
            ("class_token", True),
            ("norm_epsilon", 1e-6),
            ("head_kernel", 1),
            ("head_up_scale", 4),
        ),
        fixed=("head_kernel",),
    ),
    Kind(
        name="setr",
        title="mmsegmentation's SETR-PUP",
        layout=MMSEG,
        golden=(VIT, SETR_PUP),
        prefix="backbone.",
        head=CONV,
        fields=(
            ("class_token", True),
            ("norm_epsilon", 1e-6),
            ("head_kernel", 3),
            ("head_up_scale", 2),
            ("aux_head_up_scale", 4),
        ),
        fixed=("head_kernel",),
    ),
    Kind(
        name="cts",
        title="CTS's Segmenter",
        layout=TIMM,
        golden=(CTS, LITE0),
        prefix="encoder.",
        head=MASK,
        fields=(("class_token", True), ("norm_epsilon", 1e-5)),
        fixed=("class_token", "norm_epsilon"),
        policy="policy_net.",
    ),
    Kind(
        name="segmenter",
        title="Segmenter",
        layout=TIMM,
        golden=(CTS_DENSE,),
        prefix="encoder.",
        head=MASK,
        fields=(("class_token", True), ("norm_epsilon", 1e-5)),
        fixed=("class_token", "norm_epsilon"),
    ),
    Kind(
        name="mmseg_segmenter",
        title="mmsegmentation's Segmenter",
        layout=MMSEG,
        golden=(VIT, MMSEG_DECODER),
        prefix="backbone.",
        head=MMSEG_MASK,
        fields=(("class_token", True), ("norm_epsilon", 1e-6)),
    ),
)
BARE = (
    Kind(
        name="vit",
        title="an AugReg ViT",
        layout=AUGREG,
        golden=(TIMM_VIT,),
        note="Those are files in timm's layout; the same arrays in AugReg's give the same "
        "parameters bit for bit (tests/test_convert.py).",
    ),
    Kind(name="vit", title="a timm ViT", layout=TIMM, golden=(TIMM_VIT,)),
    Kind(name="vit", title="an mmsegmentation ViT", layout=MMSEG, golden=(VIT,)),
    Kind(name="vit", title="SViT's classifier", layout=SVIT, golden=(SVIT_BLOCKS,)),
)

REFUSED = (  # patterns of names, and why such a checkpoint cannot be converted
    (r"decode_head\.mla.*|neck\..*", "a neck or SETR-MLA's head has no counterpart here"),
    (r"decode_head\.atm\..*", "SegViT's Shrunk head has no counterpart here"),
    (r"encoder\.dist_token", "Segmenter's distilled DeiT uses a token that no ViT here has"),
    (r"decoder\.head\.weight", "Segmenter's linear decoder has no configuration here"),
)


def kind_of(source: State, origin: str) -> Kind:
    """What kind of checkpoint the arrays are. Raises UserError: none that can be converted."""
    for pattern, why in REFUSED:
        name = next((name for name in source if re.fullmatch(pattern, name)), None)
        if name:
            raise UserError(f"{origin}: cannot be converted: {why} ({name})")
    for kind in KINDS:
        signs = {kind.prefix + kind.layout.sign, kind.head.prefix + kind.head.sign}
        if kind.policy:
            signs.add(kind.policy + "head.weight")
        if signs <= source.keys():
            return kind if kind.head is not CONV else _by_kernel(source, origin)
    layout = layout_of(source)
    if layout is None:
        known = ", ".join(kind.title for kind in (*BARE, *KINDS))
        raise UserError(
            f"{origin}: of no known kind ({', '.join(list(source)[:3])} ...); known are {known}"
        )
    return next(kind for kind in BARE if kind.layout is layout)


def _by_kernel(source: State, origin: str) -> Kind:
    """SETR-Naive's arrays are named as SETR-PUP's; the kernels of the last head differ."""
    shape = sizes.shape_of(source, CONV.prefix + CONV.sign, 4, origin)
    of_setr = [kind for kind in KINDS if kind.head is CONV]
    for kind in of_setr:
        side = dict(kind.fields)["head_kernel"]
        if shape[2:] == (side, side):
            return kind
    known = " nor ".join(kind.title for kind in of_setr)
    raise UserError(
        f"{origin}: {CONV.prefix}{CONV.sign} is a {shape[2]}x{shape[3]} convolution, which makes "
        f"it neither {known}"
    )
