"""One HTML page about predictions: self-contained, in light and dark, a slider over the stages.

And a table of the same figures.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from jaxseg.data.classes import Classes
from jaxseg.exit_pictures import exit_titles
from jaxseg.pages import data_url, environment
from jaxseg.predict_pictures import (
    encoded,
    exit_colours,
    limited,
    nearest,
    palette_png,
    pixel_counts,
    smaller,
    veil,
)
from jaxseg.windows import Size

MOST = 200  # pictures on a page; phones still scroll through it
LARGEST = 300_000  # bytes that a picture adds at most, unless it cannot be made smaller
_SIDES = (720, 540, 400, 300, 200)  # pixels of the longer side, the first that stays below LARGEST
_COLUMNS = (
    *("file", "labels", "width", "height", "predicted_width", "predicted_height"),
    *("gmacs", "dense_gmacs", "tokens_per_stage", "milliseconds", "error"),
)
_LISTED = 12  # classes named below a picture


class Picture(NamedTuple):
    """What is told of one image.

    labels: the prediction. stages: the predictions after each exit, of any size; empty if unknown.
    left: the exit at which pixels, on any grid, left, -1 if at none; None if unknown.
    predicted_at: (height, width) given to the model. gmacs, dense_gmacs: as computed, and with all
    tokens in all blocks. tokens: that each stage worked on, over all inputs of the network.
    """

    name: str
    image: UInt8[np.ndarray, "H W 3"]
    labels: UInt8[np.ndarray, "H W"]
    stages: Sequence[UInt8[np.ndarray, "h w"]]
    left: Int[np.ndarray, "h w"] | None
    predicted_at: Size
    gmacs: float
    dense_gmacs: float
    tokens: Sequence[int]
    milliseconds: float

    @property
    def reduced(self) -> str:
        """Says at what size it was predicted, if not at its own."""
        if self.predicted_at == self.labels.shape:
            return ""
        height, width = self.predicted_at
        return f"predicted at {width} x {height}, labels enlarged"


class Layer(NamedTuple):
    """A prediction to lay over the picture, and what is said about it."""

    url: str
    text: str


class Card(NamedTuple):
    """A picture as the template shows it: pictures are data URLs, all else is text."""

    name: str
    size: str
    width: int
    height: int
    photo: str
    layers: list[Layer]
    exits: str
    exit_texts: list[str]
    shares: list[tuple[int, str, str]]
    rest: str
    numbers: str


def card(picture: Picture, classes: Classes, layers: Sequence[int], ends: Sequence[int]) -> Card:
    """The picture made small for the page; ``layers`` are those (1-based) after which tokens leave,
    ``ends`` those at which the number of tokens changes at all.

    Prediction and exits lie over the picture, which is stored once: a PNG of a few colours is much
    smaller than another photo.
    """
    for side in _SIDES:
        photo, *over = _pictures(picture, classes, layers, side)
        if sum(map(len, (photo, *over))) < LARGEST:
            break
    exits = over.pop() if picture.left is not None else ""
    shares, rest = _shares(picture.labels, classes)
    height, width = picture.labels.shape
    return Card(
        picture.name,
        ", ".join([f"{width} x {height}", *filter(None, [picture.reduced])]),
        *limited(picture.labels.shape, side)[::-1],
        photo,
        [Layer(*pair) for pair in zip(over, _stage_texts(picture, layers), strict=True)],
        exits,
        _exit_texts(picture.left, layers) if exits else [],
        shares,
        rest,
        _numbers(picture, ends),
    )


def render(
    title: str,
    rows: Sequence[Mapping],
    notes: Sequence[str],
    cards: Sequence[Card],
    classes: Classes,
    layers: Sequence[int],
) -> bytes:
    """The page in UTF-8. Texts may come from outside: all of them are escaped.

    ``rows`` are those of `table`, ``notes`` paragraphs below the totals. ``#3`` behind its address
    leads to the third picture, ``#3.1`` also moves its slider to the first stage.
    """
    failures = [row["error"] for row in rows if "error" in row]
    page = (
        environment()
        .get_template("predict.html.j2")
        .render(
            title=title,
            totals=totals(rows),
            notes=notes,
            failures=failures[:MOST],
            unlisted=len(failures[MOST:]),
            cards=cards,
            layers=layers,
            slides=_slides(cards),
            maps=any(card.exits for card in cards),
            colours=classes.colours,
            exit_colours=exit_colours(len(layers)),
        )
    )
    return page.encode("utf-8", "backslashreplace")


def notes(
    rows: Sequence[Mapping], cards: Sequence[Card], layers: Sequence[int], count: int
) -> list[str]:
    """What a reader has to know, where ``count`` pictures were asked for."""
    found = []
    if len(rows) < count:
        found.append(f"Stopped early: {count - len(rows)} of {count} pictures were not looked at.")
    if _slides(cards):
        found.append(
            "The slider below a prediction shows what each stage predicts; a token that has left "
            "keeps what it left with. #3.1 at the end of this page's address opens picture 3 after "
            "its first stage."
        )
    elif layers and any(card.exits for card in cards):
        found.append(
            "There is no prediction of each stage here: windows overlap and their scores are "
            "averaged at the end. A pixel has left where the last window over it let it go."
        )
    elif layers and cards:
        found.append(
            "There are neither predictions of each stage nor maps of exits here: each picture is "
            "looked at several times, and in each view other tokens leave."
        )
    done = sum("error" not in row for row in rows)
    if done > len(cards):
        found.append(
            f"The first {len(cards)} of {done} pictures are shown; summary.csv has all of them."
        )
    return found


def row(picture: Picture, labels: str) -> dict[str, object]:
    """A picture's line of `table`; ``labels`` names the file of its label map."""
    height, width = picture.labels.shape
    predicted_height, predicted_width = picture.predicted_at
    return {
        "file": picture.name,
        "labels": labels,
        "width": width,
        "height": height,
        "predicted_width": predicted_width,
        "predicted_height": predicted_height,
        "gmacs": picture.gmacs,
        "dense_gmacs": picture.dense_gmacs,
        "tokens_per_stage": " ".join(map(str, picture.tokens)),
        "milliseconds": picture.milliseconds,
    }


def table(rows: Sequence[Mapping]) -> bytes:
    """CSV in UTF-8 of `row` for every picture, or of "file" and "error" where it failed."""
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    for each in rows:
        shown = {k: f"{v:.3f}" if isinstance(v, float) else v for k, v in each.items()}
        if shown["file"].startswith(("=", "+", "-", "@")):  # spreadsheets would compute these
            shown["file"] = f"./{shown['file']}"
        writer.writerow(shown)
    return text.getvalue().encode("utf-8", "backslashreplace")


def totals(rows: Sequence[Mapping]) -> dict[str, str]:
    """Named figures over all pictures, means where not counts."""
    done = [each for each in rows if "error" not in each]
    found = {"pictures": str(len(done))}
    if len(done) < len(rows):
        found["failed"] = str(len(rows) - len(done))
    if not done:
        return found
    macs, dense, milliseconds = (
        np.mean([each[k] for each in done]) for k in ("gmacs", "dense_gmacs", "milliseconds")
    )
    found["GMACs per picture"] = f"{macs:.3g}"
    if f"{dense:.3g}" != f"{macs:.3g}":
        found["GMACs if dense"] = f"{dense:.3g}"
    found["milliseconds per picture"] = f"{milliseconds:.0f}"
    return found


def _slides(cards: Sequence[Card]) -> bool:
    return any(len(card.layers) > 1 for card in cards)


def _pictures(picture: Picture, classes: Classes, layers: Sequence[int], side: int) -> list[str]:
    """Data URLs: photo, predictions in the order of the stages, exits if known."""
    size = limited(picture.labels.shape, side)
    urls = [data_url("jpeg", encoded(smaller(picture.image, size), "JPEG", quality=80))]
    for labels in (*picture.stages, picture.labels):
        urls.append(data_url("png", palette_png(nearest(labels, size), classes)))
    if picture.left is not None:
        left = nearest(picture.left, size)
        urls.append(data_url("png", encoded(veil(left, len(layers)), "PNG")))
    return urls


def _stage_texts(picture: Picture, layers: Sequence[int]) -> list[str]:
    texts = []
    for layer, labels in zip(layers, picture.stages, strict=False):
        other = np.mean(nearest(labels, picture.labels.shape) != picture.labels)
        texts.append(f"prediction after layer {layer}: {_percent(other)} of the pixels will change")
    return [*texts, "final prediction"]


def _exit_texts(left: Int[np.ndarray, "h w"], layers: Sequence[int]) -> list[str]:
    return [*exit_titles(left, layers), f"to the end: {100 * np.mean(left < 0):.0f} %"]


def _shares(labels: np.ndarray, classes: Classes) -> tuple[list[tuple[int, str, str]], str]:
    """(class, name, share of pixels) from the largest, and a text about those left out."""
    counts = pixel_counts(labels, len(classes))
    order = [int(k) for k in np.argsort(-counts, kind="stable") if counts[k]]
    named = [(k, classes.names[k], _percent(counts[k] / labels.size)) for k in order[:_LISTED]]
    others = order[_LISTED:]
    rest = f"{len(others)} more: {_percent(counts[others].sum() / labels.size)}" if others else ""
    return named, rest


def _numbers(picture: Picture, ends: Sequence[int]) -> str:
    macs, dense = (f"{each:.3g}" for each in (picture.gmacs, picture.dense_gmacs))
    compared = f" (dense {dense})" if dense != macs else ""
    spans = [*(f"up to layer {layer}" for layer in ends), "to the end"]
    tokens = (f"{n} {span}" for n, span in zip(picture.tokens, spans, strict=True))
    return f"{macs} GMACs{compared}, {picture.milliseconds:.0f} ms, tokens: {', '.join(tokens)}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share >= 0.0005 or not share else "< 0.1 %"
