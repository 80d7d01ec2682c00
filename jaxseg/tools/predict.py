r"""Segment pictures with a trained model.

    python -m jaxseg.tools.predict --weights=runs/mine --out=OUT photo.jpg folder/ 'more/*.png'

Takes files, folders (the pictures in them, not below) and patterns; JPEG, PNG, WebP, GIF, BMP and
TIFF of any size, colour mode and depth, turned upright as EXIF says. Writes

    OUT/report.html         the first 200 pictures on one page, with what every stage predicted
    OUT/labels/NAME.png     class numbers, with the palette of the classes, at the picture's size
    OUT/overlay/NAME.jpg    the same over the picture, with a legend
    OUT/exits/NAME.png      where tokens left, if the model lets them leave
    OUT/summary.csv         size, GMACs, tokens per stage, milliseconds of each picture; errors
    OUT/legend.png          all classes

A picture that cannot be read or predicted is named and the rest goes on; the exit code is then 1.
One whose prediction would take more than --memory_gb is made smaller for it and the labels are
enlarged, which is said. Reading and drawing take about 16 bytes per pixel besides; pictures of more
than 179 million pixels are refused. --weights may also be a checkpoint of another program, or the
name of a public one (docs/checkpoints.md). With --config the model is run as that configuration
says.
"""

import glob
import os
import pathlib
import sys
import warnings
from collections.abc import Sequence

import jax
import numpy as np
from absl import flags
from jaxtyping import Int
from PIL import Image

from jaxseg import cli, memory, predict_page, startup, viz
from jaxseg import predict_pictures as draw
from jaxseg.data.images import read_image
from jaxseg.data.transforms import keep_ratio_size
from jaxseg.errors import UserError
from jaxseg.exits import StageView, ends_of, layers_of
from jaxseg.inference import EvalSpec
from jaxseg.model import Model, Outcome, load
from jaxseg.models.macs import dense_macs
from jaxseg.models.network import network
from jaxseg.predict_page import Picture
from jaxseg.progress import Progress
from jaxseg.weights import write_atomically
from jaxseg.windows import Size, window_starts

FLAGS = flags.FLAGS
_KINDS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")


def inputs_of(arguments: Sequence[str], out: pathlib.Path) -> list[pathlib.Path]:
    """Files in the order of the arguments, those of a folder or pattern sorted, each once.

    What an earlier call wrote to ``out`` is no input, unless it is named itself.
    Raises UserError: an argument that names nothing.
    """
    found: dict[str, pathlib.Path] = {}
    for text in arguments:
        path = pathlib.Path(text)
        files = [path] if path.is_file() else [p for p in _listed(path) if not _is_own(p, out)]
        if not files:
            raise UserError(f"{text}: no picture there; name files, folders or a quoted pattern")
        for file in files:
            found.setdefault(os.path.abspath(file), file)
    return list(found.values())


def _listed(path: pathlib.Path) -> list[pathlib.Path]:
    """The pictures in a folder, or the files that a pattern matches."""
    if path.is_dir():
        files = [p for p in path.iterdir() if p.suffix.lower() in _KINDS and p.name[0] != "."]
    else:
        files = map(pathlib.Path, glob.glob(str(path)))
    return sorted(p for p in files if p.is_file())


def _is_own(path: pathlib.Path, out: pathlib.Path) -> bool:
    outputs = [(out / name).resolve() for name in ("labels", "overlay", "exits", "legend.png")]
    path = path.resolve()
    return path in outputs or path.parent in outputs


def names_of(paths: Sequence[pathlib.Path]) -> list[str]:
    """File names without suffix, made different with a number where they repeat.

    Also where they differ in case only, and cut to what file systems take.
    """
    names, used = [], set()
    for path in paths:
        stem = os.fsencode(path.stem)[:200].decode(errors="ignore") or "picture"
        name, number = stem, 2
        while name.casefold() in used:
            name, number = f"{stem}_{number}", number + 1
        used.add(name.casefold())
        names.append(name)
    return names


def look(model: Model, view: StageView | None, path: pathlib.Path, limit: float) -> Picture:
    """Reads and predicts one picture within ``limit`` bytes, its stages where there is a ``view``.

    Raises UserError: it cannot be read, or does not fit into memory.
    """
    image = read_image(path)
    size = memory.fitting(model.spec, model.predictor, image.shape[:2], limit)
    given = image if size == image.shape[:2] else draw.smaller(image, size)
    try:
        found = model.predict(given)
        stages = view(model.arrays, given).labels[:-1] if view else ()
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
            raise UserError(f"{path}: out of memory; give a smaller --memory_gb") from None
        raise
    dense = model.spec.dense()
    return Picture(
        name=str(path),
        image=image,
        labels=draw.nearest(found.labels, image.shape[:2]),
        stages=stages,
        left=left_of_pixels(model, found, size),
        predicted_at=size,
        gmacs=found.gmacs,
        dense_gmacs=sum(
            dense_macs(dense, each).gmacs_backbone_and_final_head for each in found.inputs
        ),
        tokens=found.alive.sum(axis=0).tolist(),
        milliseconds=1e3 * found.seconds,
    )


def left_of_pixels(model: Model, found: Outcome, size: Size) -> Int[np.ndarray, "h w"] | None:
    """The exit at which each pixel that the network saw left, -1 if at none.

    Of the windows over a pixel the one counts that let it go last. None where nothing can leave or
    where several views of an image are averaged. ``size``: that of the image.
    """
    how, patch, never = model.predictor.spec, model.spec.vit.patch, len(model.spec.exits)
    if not never or _averages(how):
        return None
    seen = size if how.resize is None else keep_ratio_size(size, *how.resize)
    corners = [(0, 0)] if how.mode == "whole" else window_starts(seen, how.crop, how.stride)
    last = np.zeros(seen, np.int8)
    for (y, x), (height, width), left in zip(corners, found.inputs, found.left, strict=True):
        pixels = np.where(left < 0, never, left).repeat(patch, axis=0).repeat(patch, axis=1)
        under = last[y : y + height, x : x + width]
        under[:] = np.maximum(under, pixels[: under.shape[0], : under.shape[1]])
    return np.where(last == never, -1, last)


def _averages(how: EvalSpec) -> bool:
    return how.flip or tuple(how.scales) != (1.0,)


def _has_stages(model: Model) -> bool:
    """Whether each stage predicts an image of its own: there are exits, and it is one input."""
    how = model.predictor.spec
    return bool(model.spec.exits) and how.mode == "whole" and not _averages(how)


def save(out: pathlib.Path, name: str, picture: Picture, model: Model) -> None:
    """All files of one picture."""
    labels = draw.palette_png(picture.labels, model.classes)
    write_atomically(out / "labels" / f"{name}.png", labels)
    over = draw.overlay(picture.image, picture.labels, model.classes)
    write_atomically(out / "overlay" / f"{name}.jpg", draw.encoded(over, "JPEG", quality=92))
    if picture.left is not None:
        exits = draw.exits(picture.image, picture.left, layers_of(model.spec))
        write_atomically(out / "exits" / f"{name}.png", draw.encoded(exits, "PNG"))


def predict_all(
    model: Model, paths: Sequence[pathlib.Path], out: pathlib.Path, limit: float, title: str
) -> int:
    """Writes everything, with ``limit`` bytes per prediction; returns how many pictures failed.

    Whatever stops it, summary and page are written for what is done until then.
    Raises OSError: something cannot be written.
    """
    view = StageView(network(model.spec), model.predictor.spec) if _has_stages(model) else None
    layers, ends, rows, cards = layers_of(model.spec), ends_of(model.spec), [], []
    write_atomically(out / "legend.png", draw.encoded(viz.legend(model.classes), "PNG"))
    try:
        with Progress(len(paths), "predict") as progress:
            for path, name in zip(paths, names_of(paths), strict=True):
                room = len(cards) < predict_page.MOST
                try:
                    picture = look(model, view if room else None, path, limit)
                except UserError as error:
                    _say(f"error: {error}")
                    rows.append({"file": str(path), "error": str(error)})
                else:
                    if picture.reduced:
                        _say(f"note: {path}: {picture.reduced} to stay below --memory_gb")
                    save(out, name, picture, model)
                    rows.append(predict_page.row(picture, f"labels/{name}.png"))
                    if room:
                        cards.append(predict_page.card(picture, model.classes, layers, ends))
                progress.update(len(rows))
    finally:
        write_atomically(out / "summary.csv", predict_page.table(rows))
        notes = [way_of(model), *predict_page.notes(rows, cards, layers, len(paths))]
        page = predict_page.render(title, rows, notes, cards, model.classes, layers)
        write_atomically(out / "report.html", page)
    return sum("error" in row for row in rows)


def way_of(model: Model) -> str:
    """How pictures are predicted, for people."""
    how, (device, *_) = model.predictor.spec, jax.devices()
    (height, width), fit = how.crop, how.resize
    way = "whole" if how.mode == "whole" else f"in windows of {width} x {height} pixels"
    size = "at their own size" if fit is None else f"fitted into {fit[0]} x {fit[1]}"
    views = len(how.scales) * (1 + how.flip)
    averaged = f", mean scores of {views} scales and mirror images" if views > 1 else ""
    return (
        f"Pictures are taken {way}, {size}{averaged}. Milliseconds are from pixels to labels on "
        f"this device ({device.device_kind}), without reading, compiling and drawing."
    )


def _say(text: str) -> None:
    """On standard error, below a progress line; names may hold control characters."""
    shown = "".join(c if c.isprintable() else "?" for c in text)
    print("\r\x1b[K" * sys.stdout.isatty() + shown, file=sys.stderr, flush=True)


def main(arguments: list[str]) -> int:
    startup.prepare()
    # Pillow warns from half of what it refuses; --memory_gb is there for these.
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    if not arguments:
        raise UserError("no picture named; give files, folders or quoted patterns")
    out = pathlib.Path(FLAGS.out)
    paths = inputs_of(arguments, out)
    model = load(FLAGS.weights, FLAGS.config)
    title = f"Predictions of {FLAGS.weights}"
    try:
        failed = predict_all(model, paths, out, 1e9 * FLAGS.memory_gb, title)
    except OSError as error:
        raise UserError(
            f"{error.filename or out}: cannot be written ({error.strerror}); "
            "free the place or give another --out"
        ) from error
    print(f"wrote {len(paths) - failed} predictions to {out}; open {out / 'report.html'}")
    if failed:
        _say(f"error: {failed} of {len(paths)} pictures failed; see {out / 'summary.csv'}")
    return 1 if failed else 0


if __name__ == "__main__":
    cli.define_config(required=False)
    flags.DEFINE_string(
        "weights",
        None,
        "Workdir of a training run, a checkpoint file, or the name of a public checkpoint.",
        required=True,
    )
    flags.DEFINE_string("out", None, "Folder to write to.", required=True)
    flags.DEFINE_float("memory_gb", 4.0, "Most memory for one prediction, in 1e9 bytes.")
    cli.run(main, arguments=True)
