"""DynamicViT (Rao et al., NeurIPS 2021): predictors before three blocks drop tokens for good.

A predictor sees what is left: its own features of a token beside their mean. Training samples
(straight-through Gumbel), multiplies with what is left already, and weighs the keys of attention by
it, so that gradients reach the predictors; at inference the int(rho x patches) most probable stay
(section 3.3). Losses: squared distance of the share kept from rho, image by image; and what the
dense model, frozen, says of the same image: its scores, and its features of the tokens kept.

For dense prediction (SViT, supplement D) who has been dropped keeps its last features ("preserve"),
or reads as zero, which is the nearest to classification and worse.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxseg.bypass import Choice, Cut, Look, falling
from jaxseg.losses import Term, usage_term
from jaxseg.models.gates import Predictor, straight_through
from jaxseg.selection import best_of_row


@dataclass(frozen=True)
class Drop:
    """Who is dropped before which blocks.

    layers: (1-based) before which a predictor decides. keep: shares of the tokens there are that
    go on after each, which do not rise. ratio_weight, distil: of the losses; the latter of scores
    and of features each.
    """

    layers: tuple[int, ...] = (4, 7, 10)
    keep: tuple[float, ...] = (0.7, 0.49, 0.343)
    preserve: bool = True
    ratio_weight: float = 2.0
    distil: float = 0.0

    listens = False
    fuses = False
    needs_class_token = False
    fixed_counts = True

    def __post_init__(self):
        falling(self.keep)

    @property
    def cuts(self) -> tuple[Cut, ...]:
        return tuple(Cut(layer - 1) for layer in self.layers)

    def gates(self, width: int) -> list:
        return [Predictor(width) for _ in self.layers]

    def choose(self, gates, look: Look) -> Choice:
        gate = gates[look.number]
        if look.key is not None:
            before = look.inside.astype(jnp.float32) if look.before is None else look.before
            logits = gate(look.rows, jnp.where(look.patch, before, 0.0))
            weight = before * straight_through(logits, jax.random.gumbel(look.key, logits.shape))
            weight = jnp.where(look.patch, weight, 0.0)
            return Choice(weight > 0, weight=weight, policy=True, among=look.patch)
        x, layout = look.carry.x, look.carry.layout  # only what is left is looked at
        logits = gate(x, layout.patches(x), layout)
        share = look.spread(jax.nn.log_softmax(logits)[..., :1])[..., 0]
        # At least one: an image without tokens has nothing to attend to.
        count = look.count(lambda n: max(1, int(self.keep[look.number] * n)))
        return Choice(best_of_row(share, look.inside & look.patch, count), count)

    def terms(self, choices: list[Choice], prefix: int, batch_axis: str | None) -> dict[str, Term]:
        kept, among = zip(*(c.of_patches(prefix) for c in choices), strict=True)
        return {"ratio": usage_term(kept, among, self.keep, self.ratio_weight, True, batch_axis)}

    def macs(self, width: int, patches: int, before, after) -> float:
        """Of all predictors, each on the tokens of the stage before it."""
        del patches, after
        return sum(tokens * Predictor.macs(width) for tokens in before)
