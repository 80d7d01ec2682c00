"""One HTML page about an evaluation: self-contained, without scripts, in light and dark."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from jaxseg import viz
from jaxseg.data.classes import Classes
from jaxseg.metrics import Scores, percent

_WIDTH = 640  # pixels of an embedded picture

# Names of files and classes come from outside: every one goes through `html.escape`, and the policy
# forbids whatever is not a picture or a style of this page.
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
:root {{ --paper: #fff; --ink: #1c1e21; --soft: #60656c; --line: #d9dce0; --bar: #3b76c4; --track: #eef0f3; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --paper: #16181b; --ink: #e4e6e9; --soft: #9aa0a8; --line: #34383e; --bar: #5b96e4; --track: #25282d; }}
}}
body {{ margin: 2rem auto; max-width: 1160px; padding: 0 1rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }}
h1 {{ font-size: 1.6rem; margin: 0 0 1rem; overflow-wrap: anywhere; }}
h2 {{ font-size: 1.15rem; margin: 2.2rem 0 .8rem; }}
.means {{ display: flex; flex-wrap: wrap; gap: 2.5rem; margin: 1.2rem 0; }}
.means b {{ display: block; font-size: 2rem; line-height: 1.2; font-weight: 600; }}
.means span, figcaption, th {{ color: var(--soft); }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .25rem .9rem .25rem 0; border-bottom: 1px solid var(--line); text-align: right; font-weight: 400; }}
th:first-child, td:first-child {{ text-align: left; overflow-wrap: anywhere; }}
.summary td {{ text-align: left; overflow-wrap: anywhere; }}
.summary td:first-child {{ color: var(--soft); white-space: nowrap; }}
.bar {{ display: inline-block; width: 180px; height: .7em; margin-right: .7em; background: var(--track); }}
.bar i {{ display: block; height: 100%; background: var(--bar); }}
.number {{ display: inline-block; min-width: 3.2em; }}
.swatch {{ display: inline-block; width: .9em; height: .9em; margin-right: .55em; vertical-align: -.08em;
  border: 1px solid var(--line); }}
.legend {{ display: flex; flex-wrap: wrap; gap: .2rem 1.3rem; margin: 0 0 1rem; padding: 0; list-style: none; }}
.hatch {{ background: repeating-linear-gradient(135deg, #808080 0 2px, transparent 2px 5px); }}
figure {{ margin: 0 0 1.4rem; }}
figcaption {{ overflow-wrap: anywhere; }}
.pictures {{ display: grid; grid-template-columns: repeat(3, 1fr); gap: .5rem; }}
.pictures img {{ width: 100%; height: auto; display: block; }}
</style>
</head>
<body>
<h1>{title}</h1>
<div class="means">{means}</div>
<table class="summary">{summary}</table>
<h2>Classes</h2>
<div class="wide"><table>
<tr><th>class</th><th>IoU %</th><th>recall %</th><th>precision %</th><th>F-score %</th><th>share of pixels %</th></tr>
{rows}
</table></div>
{samples}
</body>
</html>
"""  # noqa: E501


def write_report(
    path: str | Path,
    title: str,
    summary: Mapping[str, object],
    scores: Scores,
    classes: Classes,
    samples: Sequence[tuple[str, np.ndarray, np.ndarray, np.ndarray]],
) -> None:
    """Writes the page to ``path``.

    ``summary`` is shown as lines of name and value, floats to four digits. ``samples`` are
    (name, image uint8[H,W,3], label uint8[H,W], prediction uint8[H,W], ...).
    """
    means = {
        "mean IoU %": scores.miou,
        "mean class accuracy %": scores.mean_accuracy,
        "pixel accuracy %": scores.pixel_accuracy,
    }
    page = _PAGE.format(
        title=html.escape(title),
        means="".join(
            f"<div><b>{percent(value)}</b><span>{name}</span></div>"
            for name, value in means.items()
        ),
        summary="".join(
            f"<tr><td>{html.escape(str(name))}</td><td>{html.escape(_shown(value))}</td></tr>"
            for name, value in summary.items()
        ),
        rows="\n".join(_row(scores, classes, k) for k in range(len(classes))),
        samples=_samples(classes, samples) if samples else "",
    )
    Path(path).write_text(page, encoding="utf-8")


def _shown(value: object) -> str:
    if isinstance(value, float):
        return "n/a" if np.isnan(value) else f"{value:.4g}"
    return str(value)


def _row(scores: Scores, classes: Classes, k: int) -> str:
    share = scores.pixels[k] / max(1, scores.pixels.sum())
    numbers = (scores.recall[k], scores.precision[k], scores.fscore[k], share)
    return (
        f"<tr><td>{_named(classes, k)}</td>"
        f"<td>{_bar(scores.iou[k])}<span class='number'>{percent(scores.iou[k])}</span></td>"
        + "".join(f"<td>{percent(number)}</td>" for number in numbers)
        + "</tr>"
    )


def _bar(fraction: float) -> str:
    if np.isnan(fraction):
        return ""
    return f"<span class='bar'><i style='width:{100 * fraction:.1f}%'></i></span>"


def _named(classes: Classes, k: int) -> str:
    red, green, blue = classes.colours[k]
    swatch = f"<span class='swatch' style='background:rgb({red},{green},{blue})'></span>"
    return swatch + html.escape(classes.names[k])


def _samples(classes: Classes, samples: Sequence[tuple]) -> str:
    """Image, label and prediction of each sample under a legend of the classes they show."""
    shown = np.unique(np.concatenate([np.unique([*s[2].flat, *s[3].flat]) for s in samples]))
    entries = [_named(classes, int(k)) for k in shown if k < len(classes)]
    if shown[-1] >= len(classes):
        entries.append("<span class='swatch hatch'></span>ignored")
    figures = []
    for name, image, label, prediction, *_ in samples:
        pictures = {
            "image": image,
            "label": viz.overlay(image, label, classes),
            "prediction": viz.overlay(image, prediction, classes),
        }
        cells = "".join(
            f'<img src="{_data_url(picture)}" alt="{what}" title="{what}">'
            for what, picture in pictures.items()
        )
        figures.append(
            f"<figure><div class='pictures'>{cells}</div>"
            f"<figcaption>{html.escape(name)}</figcaption></figure>"
        )
    items = "".join(f"<li>{entry}</li>" for entry in entries)
    return (
        "<h2>Samples: image, label, prediction</h2>\n"
        f"<ul class='legend'>{items}</ul>\n" + "\n".join(figures)
    )


def _data_url(picture: np.ndarray) -> str:
    image = Image.fromarray(picture)
    image.thumbnail((_WIDTH, 2 * _WIDTH))
    stored = io.BytesIO()
    image.save(stored, format="JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(stored.getvalue()).decode("ascii")
