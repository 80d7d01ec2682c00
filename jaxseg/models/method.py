"""What a method is that chooses tokens before or inside blocks: SViT, DynamicViT and their peers.

`jaxseg.methods` has them, `jaxseg.models.sparse` asks them.
"""

from collections.abc import Sequence
from typing import Protocol

from flax import nnx

from jaxseg.bypass import Choice, Cut, Look
from jaxseg.losses import Term


class Method(Protocol):
    """Frozen, a file per paper.

    cuts: where it decides, in rising order. preserve: who is not chosen keeps its features for the
    heads, else reads as zero. listens: it asks for the class attention of the last block before a
    cut. fixed_counts: `Choice.count` is always given. fuses: `Choice.fused`, too.
    distil: weight of what a dense teacher says.
    """

    cuts: tuple[Cut, ...]
    preserve: bool
    listens: bool
    needs_class_token: bool
    fixed_counts: bool
    fuses: bool
    distil: float

    def gates(self, width: int) -> list[nnx.Module]:
        """Its parameters, one module per cut, or none."""

    def choose(self, gates: Sequence[nnx.Module], look: Look) -> Choice:
        """The decision at a cut."""

    def terms(self, choices: list[Choice], prefix: int, batch_axis: str | None) -> dict[str, Term]:
        """Its losses, from what has been chosen in training."""

    def macs(
        self, width: int, patches: int, before: Sequence[float], after: Sequence[float]
    ) -> float:
        """Of the decisions themselves; tokens that were worked on before and after each cut."""
