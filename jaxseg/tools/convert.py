r"""Checkpoints of other programs as model folders of this one.

    python -m jaxseg.tools.convert SETR.pth --out=models/setr --licence=Apache-2.0

Takes .npz, .safetensors and PyTorch files (.pth, .pt, .bin, .ckpt) of DToP, SegViT, SETR, Segmenter
and CTS, and ViTs of AugReg, timm, mmsegmentation and SViT; the names of the arrays tell which.
Writes DIR/model.safetensors, DIR/config.json and DIR/card.md (origin, digest, licence, what was
ignored, parity), for eval.py, tools.predict and `jaxseg.load`. Of a ViT only the backbone, without
config.json, for --config.init_from; with --config of a classifier (configs/vits_imagenet.py,
configs/svit_vits_imagenet.py) its head and config.json too, for eval.py. What shapes do not tell
(attention heads, image size, normalisation) is that of the published model;
--config=configs/NAME.py describes any other. Nothing is written unless every array is used or
ignored for a stated reason and every parameter is filled.
"""

import datetime
import hashlib
import pathlib

from absl import flags

import jaxseg
from jaxseg import cli, model_dir, startup
from jaxseg.convert.files import read_arrays
from jaxseg.convert.kinds import Kind
from jaxseg.errors import UserError
from jaxseg.foreign import Model, model_of
from jaxseg.weights import save_weights, write_atomically

FLAGS = flags.FLAGS
CARD = "card.md"


def card(model: Model, source: pathlib.Path, licence: str, *, published: bool) -> str:
    """The text of card.md; ``published``: whether the configuration is, or the user gave it."""
    with open(source, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    count = sum(array.size for array in model.arrays.values())
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    parts = [
        f"# {source.name}\n\n{model.kind.title}, converted by jaxseg {jaxseg.__version__} on "
        f"{today}.",
        f"- source: {source.name}, {source.stat().st_size} bytes\n"
        f"- sha256 of the source: {digest}\n"
        f"- licence of the weights, as stated: {' '.join(licence.split()) or 'not stated'}\n"
        f"- here: {len(model.arrays)} arrays, {count} numbers, float32",
        "## Configuration\n\n" + _configuration(model, published),
        "## Ignored arrays\n\n" + _ignored(model.ignored),
        "## Parity\n\n" + _parity(model.kind),
    ]
    return "\n\n".join(parts) + "\n"


def _configuration(model: Model, published: bool) -> str:
    if model.config is None:
        positions = "x".join(map(str, model.arrays["vit.pos_embed"].shape))
        return (
            f"A ViT alone, position embedding {positions}: no heads and no config.json. Start a "
            f"training from it: --config.init_from=.../{model_dir.WEIGHTS}"
        )
    config, classes = model.config, model.classes
    fields = {f"model.{name}": value for name, value in config.model.items()}
    fields |= {f"data.{name}": config.data[name] for name in ("crop", "mean", "std")}
    fields |= {f"eval.{name}": config.eval[name] for name in ("mode", "resize", "crop", "stride")}
    shown = ", ".join(classes.names[:3])
    return (
        f"{'That of the published model' if published else 'As given with --config'}; "
        f"{len(classes)} classes ({shown} ...).\n\n"
        + "\n".join(f"- {name} = {value!r}" for name, value in fields.items())
    )


def _ignored(ignored: tuple[tuple[str, str], ...]) -> str:
    reasons = dict.fromkeys(why for _, why in ignored)
    lines = [f"- {why}: {', '.join(n for n, w in ignored if w == why)}" for why in reasons]
    return "\n".join(lines) or "None."


def _parity(kind: Kind) -> str:
    lines = [
        "Of the rules, not of this file: with weights and inputs of reference files made by the "
        "original PyTorch code (tests/verify_fixture.py; float32, on a CPU):\n"
    ]
    lines += [
        f"- {'/'.join(filter(None, (file, part)))}: outputs differed by at most {error:.1e}, "
        f"{allowed:.0e} is allowed"
        for file, part, error, allowed in kind.golden
    ]
    return "\n".join(lines + [f"\n{kind.note}"] * bool(kind.note))


def convert(source: pathlib.Path, out: pathlib.Path, given, licence: str) -> str:
    """Writes the folder ``out``; returns a line that says what is in it.

    ``given``: a configuration, or None for the published one. Raises UserError.
    """
    if (out / model_dir.WEIGHTS).exists():
        raise UserError(f"--out={out}: already holds a {model_dir.WEIGHTS}; name a new folder")
    model = model_of(read_arrays(source), given, str(source))
    text = card(model, source, licence, published=given is None)
    if model.config is None:
        save_weights(out / model_dir.WEIGHTS, model.arrays, {"format": "jaxseg"})
    else:
        model_dir.save(str(out), model.arrays, {}, model.config, model.classes)
    write_atomically(out / CARD, text.encode())
    classes = f", {len(model.classes)} classes" if model.classes else ""
    return (
        f"wrote {out}: {model.kind.title}{classes}, {len(model.arrays)} arrays; "
        f"{len(model.ignored)} of the source ignored ({CARD} says why)"
    )


def main(arguments: list[str]) -> None:
    if len(arguments) != 1:
        raise UserError(f"name one checkpoint, not {len(arguments)}: ... convert SOURCE --out=DIR")
    startup.prepare()
    source, out = pathlib.Path(arguments[0]), pathlib.Path(FLAGS.out)
    print(convert(source, out, FLAGS.config, FLAGS.licence))


if __name__ == "__main__":
    cli.define_config(required=False)
    flags.DEFINE_string("out", None, "Folder to write to.", required=True)
    flags.DEFINE_string("licence", "", "Licence of the weights, as their publisher states it.")
    cli.run(main, arguments=True)
