"""ATS (Fayyaz et al., ECCV 2022): tokens sampled evenly from the distribution of their scores.

In the middle of some blocks, after attention: a token's score is what the class token pays to it,
over all heads, times the length of its value. Scores sorted and summed up are a distribution;
evenly spaced points on it pick their nearest tokens (`jaxseg.selection.inverse_cdf`). Points that
fall together pick one token, so that images differ in how many go on. No parameters: it also works
without training. Keys and values are those of all that were left, as in the paper: attention comes
before the choice, and rows of those who are dropped then are not used further.

For dense prediction (SViT, supplement D) as in `jaxseg.methods.evit`.
"""

from dataclasses import dataclass

from jaxseg.bypass import Choice, Cut, Look
from jaxseg.losses import Term
from jaxseg.selection import inverse_cdf


@dataclass(frozen=True)
class Sample:
    """Who goes on in which blocks.

    layers: (1-based) in which tokens are chosen (the paper: 4 to 12). keep: points, as shares of
    the tokens there are (the paper: 1, as many as there are patches).
    """

    layers: tuple[int, ...] = (4, 7, 10)
    keep: tuple[float, ...] = (0.7, 0.49, 0.343)
    preserve: bool = True

    listens = True
    fuses = False
    needs_class_token = True
    fixed_counts = False
    distil = 0.0

    @property
    def cuts(self) -> tuple[Cut, ...]:
        return tuple(Cut(layer - 1, inside=True) for layer in self.layers)

    def gates(self, width: int) -> list:
        del width
        return []

    def choose(self, gates, look: Look) -> Choice:
        del gates
        score = look.heard[..., :-1].sum(axis=-1) * look.heard[..., -1]
        points = look.count(lambda n: max(1, round(self.keep[look.number] * n)))
        return Choice(inverse_cdf(score, look.inside & look.patch, points))

    def terms(self, choices: list[Choice], prefix: int, batch_axis: str | None) -> dict[str, Term]:
        del choices, prefix, batch_axis
        return {}

    def macs(self, width: int, patches: int, before, after) -> float:
        """The row of the class token, and the lengths of values."""
        del patches, after
        return 2 * width * sum(before)
