r"""Segment pictures with a trained model.

    python -m jaxseg.tools.predict --weights=runs/mine --out=OUT photo.jpg folder/ 'more/*.png'

Takes files, folders (all pictures in them, not below) and patterns; JPEG, PNG, WebP, BMP and TIFF
of any size and colour mode, turned upright as EXIF says. Writes OUT/labels/NAME.png (class numbers,
with the palette of the classes), OUT/overlay/NAME.jpg, OUT/legend.png and OUT/summary.csv: size,
GMACs, tokens per stage, milliseconds. Of a model whose tokens leave early and that takes images
whole also OUT/exits/NAME.png: where they left. A file that cannot be read is named and the rest
goes on; the exit code is then 1. With --config the model is run as that configuration says.
"""

import csv
import glob
import io
import pathlib
import sys

import numpy as np
from absl import flags
from PIL import Image

from jaxseg import cli, exit_pictures, startup, viz
from jaxseg.data.classes import Classes
from jaxseg.data.images import read_image
from jaxseg.errors import UserError
from jaxseg.model import Model, Outcome, load
from jaxseg.progress import Progress
from jaxseg.weights import write_atomically

FLAGS = flags.FLAGS
_KINDS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


def inputs_of(arguments: list[str]) -> list[pathlib.Path]:
    """Files in the order of the arguments, those of a folder or pattern sorted, each once.

    Raises UserError: an argument that names nothing.
    """
    found: dict[pathlib.Path, None] = {}
    for text in arguments:
        path = pathlib.Path(text)
        if path.is_dir():
            files = sorted(p for p in path.iterdir() if p.suffix.lower() in _KINDS)
        elif path.is_file():
            files = [path]
        else:
            files = sorted(pathlib.Path(p) for p in glob.glob(text) if pathlib.Path(p).is_file())
        if not files:
            raise UserError(f"{text}: no picture there; name files, folders or a quoted pattern")
        found |= dict.fromkeys(files)
    return list(found)


def names_of(paths: list[pathlib.Path]) -> list[str]:
    """File names without suffix, made different with a number where they repeat."""
    names, used = [], set()
    for path in paths:
        name, number = path.stem, 2
        while name in used:
            name, number = f"{path.stem}_{number}", number + 1
        used.add(name)
        names.append(name)
    return names


def with_palette(labels: np.ndarray, classes: Classes) -> bytes:
    """A PNG of class numbers that viewers show in the colours of the classes."""
    picture = Image.fromarray(labels)
    picture.putpalette(np.asarray(classes.colours, np.uint8).reshape(-1).tolist())
    content = io.BytesIO()
    picture.save(content, format="PNG")
    return content.getvalue()


def save(out: pathlib.Path, name: str, image: np.ndarray, found: Outcome, model: Model) -> None:
    """All pictures of one image."""
    write_atomically(out / "labels" / f"{name}.png", with_palette(found.labels, model.classes))
    content = io.BytesIO()
    overlay = Image.fromarray(viz.overlay(image, found.labels, model.classes))
    overlay.save(content, format="JPEG", quality=92)
    write_atomically(out / "overlay" / f"{name}.jpg", content.getvalue())
    if shows_exits(model):
        (left,), (size,) = found.left, found.inputs
        stages = [str(model.spec.heads[i].taps[-1] + 1) for i in model.spec.exits]
        seen = Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR)
        content = io.BytesIO()
        veiled = exit_pictures.exit_map(np.asarray(seen), left, stages, model.spec.vit.patch)
        Image.fromarray(veiled).save(content, format="PNG")
        write_atomically(out / "exits" / f"{name}.png", content.getvalue())


def shows_exits(model: Model) -> bool:
    """Whether an image is one input of the network, some of whose tokens leave early."""
    return bool(model.spec.exits) and model.predictor.one_view


def predict_all(model: Model, paths: list[pathlib.Path], out: pathlib.Path) -> tuple[str, int]:
    """Writes everything but the summary; returns it as CSV and how many files failed."""
    for folder in ("labels", "overlay", *(["exits"] if shows_exits(model) else [])):
        (out / folder).mkdir(parents=True, exist_ok=True)
    viz.save_png(out / "legend.png", viz.legend(model.classes))
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["file", "width", "height", "gmacs", "tokens_per_stage", "milliseconds", "error"])
    failed = 0
    with Progress(len(paths), "predict") as progress:
        for done, (path, name) in enumerate(zip(paths, names_of(paths), strict=True), start=1):
            try:
                image = read_image(path)
            except UserError as error:
                print(f"error: {error}", file=sys.stderr)
                rows.writerow([path, "", "", "", "", "", str(error)])
                failed += 1
                progress.update(done)
                continue
            found = model.predict(image)
            save(out, name, image, found, model)
            tokens = " ".join(f"{n:.0f}" for n in found.alive.sum(axis=0))
            rows.writerow(
                [
                    path,
                    image.shape[1],
                    image.shape[0],
                    f"{found.gmacs:.3f}",
                    tokens,
                    f"{1e3 * found.seconds:.1f}",
                    "",
                ]
            )
            progress.update(done)
    return text.getvalue(), failed


def main(arguments: list[str]) -> int:
    startup.prepare()
    if not arguments:
        raise UserError("no picture named; give files, folders or quoted patterns")
    paths = inputs_of(arguments)
    out = pathlib.Path(FLAGS.out)
    model = load(FLAGS.weights, FLAGS.config)
    table, failed = predict_all(model, paths, out)
    write_atomically(out / "summary.csv", table.encode())
    print(f"wrote {len(paths) - failed} predictions to {out}" + f", {failed} failed" * bool(failed))
    return 1 if failed else 0


if __name__ == "__main__":
    cli.define_config(required=False)
    flags.DEFINE_string("weights", None, "Folder of a finished training run.", required=True)
    flags.DEFINE_string("out", None, "Folder to write to.", required=True)
    cli.run(main, arguments=True)
