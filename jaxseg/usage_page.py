"""Pictures of who goes through which blocks, and one HTML page about a data set.

DIR/usage/index.html: self-contained, without scripts, in light and dark; usage.json: its numbers;
NAME.png: a sheet per picture. On the page choices lie over the photo as PNGs of a pixel per patch.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8

from jaxseg import viz
from jaxseg.bypass import Cut
from jaxseg.data.classes import Classes, Source
from jaxseg.evaluation import Sample
from jaxseg.inference import fitted
from jaxseg.models.network import Arrays
from jaxseg.pages import data_url, environment
from jaxseg.predict_pictures import encoded, limited, smaller
from jaxseg.progress import Progress
from jaxseg.usage import figures, spans
from jaxseg.usage_pictures import colours, heat, heat_text, masks_of, sheet, value_range, veil
from jaxseg.usage_view import UsageView, measure
from jaxseg.weights import write_atomically

_SIDE = 640  # pixels of a photo on the page
_STEPS = 5  # colours in the legend of the mean map
_BY_WINDOWS = (
    "The evaluation went by windows. This page is about a few images taken whole, and what is "
    "chosen in windows may differ."
)


class Mask(NamedTuple):
    """A choice on the page: a data URL, and what is said about it."""

    url: str
    text: str


class Card(NamedTuple):
    """A picture on the page. width, height: that the network sees; wide, high: whole patches."""

    name: str
    width: int
    height: int
    wide: int
    high: int
    photo: str
    heat: str
    text: str
    masks: list[Mask]


def write(
    folder: pathlib.Path,
    title: str,
    view: UsageView,
    arrays: Arrays,
    source: Source,
    samples: Sequence[Sample],
    foreground: Sequence[int] = (),
) -> None:
    """index.html, usage.json, and NAME.png of every sample; figures are those of all images.

    Where the evaluation goes by windows, both are of three samples alone: windows share one
    program, whole images of many sizes do not. Writes nothing if then there is none.
    ``foreground``: train ids, see `jaxseg.usage.figures`.
    """
    whole = view.how.mode == "whole"
    samples = samples if whole else samples[:3]
    counted = source if whole else [sample._asdict() for sample in samples]
    if not len(counted):
        return
    spec, classes = view.network.spec, source.classes
    found = figures(measure(view, arrays, counted), spec.cuts, classes.names, foreground)
    folder.mkdir(exist_ok=True)
    cards = []
    with Progress(len(samples), "pictures") as progress:
        for done, sample in enumerate(samples, start=1):
            through, seen = view(arrays, sample.image), fitted(sample.image, view.how)
            page = sheet(seen, through, spec.cuts, spec.vit.patch)
            viz.save_png(folder / f"{sample.name.replace('/', '_')}.png", page)
            cards.append(card(sample.name, seen, through, spec.cuts, spec.vit.patch))
            progress.update(done)
    notes = () if whole else (_BY_WINDOWS,)
    stored = json.dumps(found, indent=1, allow_nan=False)
    write_atomically(folder / "usage.json", (stored + "\n").encode())
    write_atomically(folder / "index.html", render(title, found, spec.cuts, cards, classes, notes))


def card(
    name: str,
    image: UInt8[np.ndarray, "h w 3"],
    through: Bool[np.ndarray, "L r c"],
    cuts: Sequence[Cut],
    patch: int,
) -> Card:
    """``image``: as the network sees it."""
    height, width = image.shape[:2]
    rows, columns = through.shape[1:]
    photo = smaller(image, limited((height, width), _SIDE))
    return Card(
        name,
        width,
        height,
        columns * patch,
        rows * patch,
        data_url("jpeg", encoded(photo, "JPEG", quality=80)),
        _png(heat(through, cuts)),
        heat_text(through),
        [Mask(_png(veil(mask)), text) for text, mask in masks_of(through, cuts)],
    )


def render(
    title: str,
    found: Mapping,
    cuts: Sequence[Cut],
    cards: Sequence[Card],
    classes: Classes,
    notes: Sequence[str] = (),
) -> bytes:
    """The page in UTF-8 of `jaxseg.usage.figures`. Texts may come from outside: all are escaped.

    ``notes``: paragraphs on top.
    """
    mean = np.array(found["heat_map"], np.float32)
    blocks = len(found["layers"])
    low, high = float(mean.min()), float(mean.max())
    steps = np.linspace(low, high, _STEPS)
    named = [
        row | {"colour": colour}
        for row, colour in zip(found["classes"], classes.colours, strict=True)
        if row["patches"]
    ]
    counts = np.arange(value_range(cuts, blocks)[0], blocks + 1)
    page = (
        environment()
        .get_template("usage.html.j2")
        .render(
            title=title,
            notes=notes,
            found=found,
            blocks=blocks,
            choices=_choices(cuts, blocks),
            classes=sorted(named, key=lambda row: -row["usage"]),
            unseen=len(classes) - len(named),
            cards=cards,
            mean=_png(colours(mean, low, high)),
            mean_size=mean.shape,
            mean_steps=_legend(steps, "{:.2f}"),
            steps=_legend(counts, "{}"),
        )
    )
    return page.encode("utf-8", "backslashreplace")


def _choices(cuts: Sequence[Cut], blocks: int) -> list[str]:
    """Per layer, where its patches are chosen."""
    found = ["all"] * blocks
    for cut, (first, last) in zip(cuts, spans(cuts, blocks), strict=True):
        if last >= first:
            found[first - 1 : last] = [f"as in {first}"] * (last - first + 1)
            where = "inside" if cut.inside else "before"
            found[first - 1] = "some have left" if cut.leaves else where
    return found


def _legend(values: Float[np.ndarray, " n"], form: str) -> list[tuple[str, str]]:
    """(colour, text) of each value, the ends of the scale at the ends."""
    shades = colours(values, values[0], values[-1])[:, :3].tolist()
    return [
        (f"rgb({red},{green},{blue})", form.format(value))
        for (red, green, blue), value in zip(shades, values, strict=True)
    ]


def _png(tokens: UInt8[np.ndarray, "r c 4"]) -> str:
    return data_url("png", encoded(tokens, "PNG"))
