"""`--config.init_from`: what a run starts from."""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jaxseg.convert.backbone import convert_vit
from jaxseg.convert.classifier import beside_vit
from jaxseg.convert.files import read_arrays
from jaxseg.convert.rules import Arrays
from jaxseg.errors import UserError
from jaxseg.models.network import shapes
from jaxseg.models.segmenter import SegmenterSpec
from jaxseg.resize import resize_position_embedding


def start_from(
    path: str, spec: SegmenterSpec, params: Mapping, stats: Mapping
) -> tuple[Arrays, Arrays, str]:
    """Parameters and statistics to train from, and one line that says what was taken.

    A .npz, .safetensors or PyTorch file. If it holds weights of this project: head arrays of
    another shape (another number of classes) keep the fresh ones, a position embedding of another
    grid is resized. The last head starts the last one; with another number of heads the auxiliary
    ones stay fresh, since a file does not say which layers they read. Otherwise it must be a ViT of
    timm, mmsegmentation, AugReg or SViT; the heads then keep their fresh ``params``, but for a
    classifier of the same classes (and SViT's gates).
    Raises UserError if the file does not hold such weights, or not the whole backbone.
    """
    origin = f"config.init_from={path}"
    if not Path(path).is_file():
        raise UserError(f"{origin}: no such file")
    stored = read_arrays(path)
    if not any(name.startswith("vit.") for name in stored):
        every = {n: s.shape for n, s in shapes(spec)[0].items()}
        rules, filled = beside_vit(stored, every)
        wanted = {n: s for n, s in every.items() if n.startswith(("vit.", *filled))}
        taken = convert_vit(stored, spec.vit, wanted, origin, beside=rules)
        what = ", ".join(["backbone", *(start.strip(".") for start in filled)])
        return dict(params) | taken, dict(stats), f"{what} ({len(taken)} arrays) from {path}"
    stored = {name: np.asarray(value, np.float32) for name, value in stored.items()}
    stored = _with_heads(stored, len(spec.heads))
    positions = stored.get("vit.pos_embed")
    if positions is not None and positions.ndim == 3:
        resized = resize_position_embedding(positions, spec.vit.grid)
        stored["vit.pos_embed"] = np.asarray(resized)
    fresh = dict(params) | dict(stats)
    taken = {n: v for n, v in stored.items() if n in fresh and v.shape == fresh[n].shape}
    unfilled = [n for n in params if n.startswith("vit.") and n not in taken]
    if unfilled:
        raise UserError(
            f"{origin}: does not fill {len(unfilled)} arrays of the backbone "
            f"({unfilled[0]} ...); use weights of a ViT of depth {spec.vit.depth} and width "
            f"{spec.vit.width}"
        )
    both = fresh | taken
    left = sorted(set(fresh) - set(taken))
    note = f"{len(taken)} of {len(fresh)} arrays from {path}"
    if left:
        note += f"; fresh: {', '.join(left[:4])}{' ...' if len(left) > 4 else ''}"
    return {n: both[n] for n in params}, {n: both[n] for n in stats}, note


def _with_heads(stored: Arrays, count: int) -> Arrays:
    """As a model of ``count`` heads names them: if that is another number, the last one alone."""
    heads = {n: m for n in stored if (m := re.match(r"heads\.([0-9]{1,3})\.", n))}
    last = max((int(m[1]) for m in heads.values()), default=count - 1)
    if last == count - 1:
        return stored
    body = {n: v for n, v in stored.items() if n not in heads}
    moved = {f"heads.{count - 1}.{n[m.end() :]}": n for n, m in heads.items() if int(m[1]) == last}
    return body | {to: stored[n] for to, n in moved.items()}
