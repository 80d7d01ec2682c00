"""Converted ViTs against timm itself, where it is installed (with PyTorch): every token."""

import numpy as np
import pytest

timm = pytest.importorskip("timm")
torch = pytest.importorskip("torch")

import fixture_parts  # noqa: E402

from jaxseg.convert.backbone import convert_vit  # noqa: E402
from jaxseg.models.heads import ConvSpec  # noqa: E402
from jaxseg.models.network import shapes  # noqa: E402
from jaxseg.models.segmenter import HeadSpec, SegmenterSpec  # noqa: E402
from jaxseg.models.vit import ViT, ViTSpec  # noqa: E402


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).standard_normal((2, 224, 224, 3), np.float32)


TINY = ViTSpec(192, 12, 3, grid=(14, 14), class_token=True, final_norm=True)


def converted(state, sizes):
    whole = shapes(SegmenterSpec(sizes, (HeadSpec((11,), ConvSpec(1)),)))[0]
    wanted = {n: s.shape for n, s in whole.items() if n.startswith("vit.")}
    flat = convert_vit(state, sizes, wanted, "timm")
    return fixture_parts.bind(ViT(sizes), {name[4:]: value for name, value in flat.items()})


def random_model(name):
    """Weights of a trained model's size: drawn ones are so small that every block does nothing."""
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    for name, value in model.named_parameters():
        if value.ndim > 1:
            value.data.normal_(std=0.05)
        elif name.endswith("bias"):
            value.data.normal_(std=0.1)
    return model, {n: value.numpy() for n, value in model.state_dict().items()}


@torch.no_grad()
def features(model, images):
    return model.forward_features(torch.from_numpy(images.transpose(0, 3, 1, 2))).numpy()


def test_every_token_is_timms(images):
    model, state = random_model("vit_tiny_patch16_224")
    ours = fixture_parts.run(converted(state, TINY), images, (11,))[11]
    theirs = features(model, images)
    assert theirs.std() > 0.5
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5)


def test_a_distilled_deit_is_timms_without_its_second_token(images):
    """timm's plain DeiT with the same arrays, the token and its position left out."""
    distilled, state = random_model("deit_tiny_distilled_patch16_224")
    plain = timm.create_model("deit_tiny_patch16_224").eval()
    rows = distilled.pos_embed.data
    left_out = {n: v for n, v in distilled.state_dict().items() if "dist" not in n}
    left_out["pos_embed"] = torch.cat([rows[:, :1], rows[:, 2:]], dim=1)
    plain.load_state_dict(left_out)
    ours = fixture_parts.run(converted(state, TINY), images, (11,))[11]
    np.testing.assert_allclose(ours, features(plain, images), rtol=0, atol=2e-5)
