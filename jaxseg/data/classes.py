"""What every data source shares: the classes and the label value that is ignored."""

import colorsys
import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol
from unicodedata import category

import numpy as np

IGNORE = 255
LONGEST_NAME = 300  # characters


@dataclass(frozen=True)
class Classes:
    """The K classes a model predicts; train id k is ``names[k]``, drawn in RGB ``colours[k]``."""

    names: tuple[str, ...]
    colours: tuple[tuple[int, int, int], ...]

    def __post_init__(self):
        if len(self.names) != len(self.colours):
            raise ValueError(f"{len(self.names)} class names but {len(self.colours)} colours")

    def __len__(self) -> int:
        return len(self.names)


class Source(Protocol):
    """Random access to one split: cheap to make, safe to pickle, read from several threads.

    ``source[i]`` is dict(image=uint8[H,W,3] RGB, label=uint8[H,W] train ids with 255 = ignore,
    name=str unique within the split).
    """

    classes: Classes

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, np.ndarray | str]: ...


def is_name(text: str) -> bool:
    """Whether ``text``, which a file may say, can be shown as the name of a class.

    It has 1 to 300 characters, of which a terminal obeys none (escapes, line breaks, tabs) and
    every one can be written (a half of a surrogate pair cannot).
    """
    strange = ("Cc", "Cs", "Zl", "Zp")
    return 0 < len(text) <= LONGEST_NAME and not any(category(c) in strange for c in text)


def nearest(name: str, names: Iterable[str]) -> str:
    """Of ``names``, of which there is one at least, what somebody who wrote ``name`` may mean."""
    return difflib.get_close_matches(name, names, n=1, cutoff=0.0)[0]


def generated_palette(count: int) -> tuple[tuple[int, int, int], ...]:
    """``count`` RGB colours, the same on every call; a longer palette extends a shorter one.

    Hue walks round the circle by the golden angle, so neighbours in the list are far apart, and
    each full turn changes saturation and brightness, so later colours do not repeat earlier ones.
    """
    colours = []
    for k in range(count):
        saturation = (0.75, 0.45, 1.0)[k // 8 % 3]
        value = (0.95, 0.6, 0.8, 0.4)[k // 5 % 4]
        rgb = colorsys.hsv_to_rgb(k * 0.6180339887498949 % 1.0, saturation, value)
        colours.append(tuple(round(255 * c) for c in rgb))
    return tuple(colours)


def make_classes(
    names: Sequence[str], colours: Sequence[tuple[int, int, int]] | None = None
) -> Classes:
    """Classes from names, with the generated palette where no colours are given."""
    return Classes(tuple(names), tuple(colours or generated_palette(len(names))))
