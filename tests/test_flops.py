"""The analytic count reproduces the dense figures that the papers print."""

import pytest

from jaxseg import flops

# name: patches, side, width, layers, head width, classes
DATA = {
    "ADE-B": (1024, 512, 768, 12, 384, 150),
    "ADE-L": (1600, 640, 1024, 24, 512, 150),
    "COCO-L": (1024, 512, 1024, 24, 512, 171),
    "PC-L": (900, 480, 1024, 24, 512, 59),
}


def dtop(name, prune=(1.0, 1.0)):
    patches, side, width, layers, head_width, classes = DATA[name]
    cuts = {12: (6, 2, 4), 24: (8, 8, 8)}[layers]
    alive = (patches, prune[0] * patches, prune[1] * patches)
    return flops.ModelMacs(
        flops.backbone(patches, width, list(zip(cuts, alive, strict=True))),
        tuple(flops.atm_head(n, width, head_width, classes, 3) for n in alive),
        flops.resizes(classes, (side, side)),
    )


@pytest.mark.parametrize(
    "name, one_head, three_heads",
    [
        ("ADE-B", 109.86, 114.96),
        ("ADE-L", 616.98, 628.62),
        ("COCO-L", 366.86, 376.19),
        ("PC-L", 315.36, 320.79),
    ],
)
def test_dtop_dense_rows(name, one_head, three_heads):
    macs = dtop(name)
    assert round(macs.gmacs_backbone_and_final_head, 2) == one_head
    assert round(macs.gmacs_all_heads, 2) == three_heads


@pytest.mark.parametrize(
    "name, printed", [("ADE-B", 120.88), ("ADE-L", 637.87), ("COCO-L", 383.90), ("PC-L", 321.59)]
)
def test_segvit_rows(name, printed):
    patches, side, width, layers, head_width, classes = DATA[name]
    size = (side, side)
    macs = flops.ModelMacs(
        flops.backbone(patches, width, [(layers, patches)]),
        (flops.cascade_head([patches] * 3, width, head_width, classes, 3, size),),
        flops.resizes(classes, size),
    )
    assert round(macs.gmacs_backbone_and_final_head, 2) == printed
    assert macs.gmacs_all_heads == macs.gmacs_backbone_and_final_head


@pytest.mark.parametrize(
    "patches, side, classes, printed",
    [(1024, 512, 150, 107.7), (900, 480, 59, 92.4), (1024, 512, 171, 107.7)],
)
def test_setr_rows(patches, side, classes, printed):
    def total(up_scale):
        macs = flops.ModelMacs(
            flops.backbone(patches, 768, [(12, patches + 1)], final_norm=True),
            (flops.conv_head(patches, 768, 256, classes, up_scale=up_scale),),
            flops.resizes(classes, (side, side)),
        )
        return macs.gmacs_all_heads

    assert round(total(1), 1) == printed
    assert total(4) > total(1) + 0.2  # the released configuration's inner x4 does not fit


def test_break_down_of_vit_b():
    parts = flops.backbone(1024, 768, [(12, 1024)]).parts
    printed = {
        "patch embedding": 0.604,
        "qkv and output": 28.991,
        "attention": 19.327,
        "mlp": 57.982,
        "layer norms": 0.094,
    }
    assert {name: round(macs / 1e9, 3) for name, macs in parts.items()} == printed
    assert round(flops.resizes(150, (512, 512)).total / 2e9, 3) == 0.157
    assert round(flops.atm_head(1024, 768, 384, 150, 3).total / 1e9, 3) == 2.547


def test_pruned_spans():
    """The keep rates that DToP's table 4 implies give its figure back, with the auxiliary heads."""
    assert dtop("ADE-B", prune=(0.556, 0.536)).gmacs_all_heads == pytest.approx(86.8, abs=0.2)
    split = flops.backbone(1024, 768, [(6, 1024), (2, 1024), (4, 1024)])
    assert split.total == flops.backbone(1024, 768, [(12, 1024)]).total


def test_inner_convolutions_by_hand():
    parts = flops.conv_head(10, 7, 3, 5, convs=2, kernel=3, up_scale=2).parts
    assert parts["layer norm"] == 5 * 10 * 7
    assert parts["convolutions"] == 9 * (10 * 7 * 3 + 40 * 3 * 3) + 2 * 3 * (10 + 40)
    assert parts["inner resizes"] == 4 * 3 * (40 + 160)
    assert parts["classifier"] == 160 * 3 * 5
    assert flops.conv_head(10, 7, 3, 5, norm=False).parts["layer norm"] == 0


def test_mean_and_table():
    low, high = dtop("ADE-B", prune=(0.5, 0.5)), dtop("ADE-B")
    mean = flops.mean([low, high])
    middle = (low.gmacs_all_heads + high.gmacs_all_heads) / 2
    assert mean.gmacs_all_heads == pytest.approx(middle)
    lines = high.table().splitlines()
    assert lines[0].split() == ["backbone:", "patch", "embedding", "0.604"]
    assert sum(line.startswith("auxiliary head 1:") for line in lines) == 3
    assert lines[-2].split()[-1] == "109.861" and lines[-1].split()[-1] == "114.955"
    assert len({len(line) for line in lines}) == 1
