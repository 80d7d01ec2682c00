"""SViT (Liu et al., WACV 2024): a small gate before each of the later blocks skips tokens.

Every gate looks at all tokens, also at those that the last one has skipped: they may come back
("reactivation"). Skipped tokens keep their features ("preservation"). Training samples from the
gates (straight-through Gumbel, temperature 1) and adds the squared distance between the share that
was used and a target, per block: of the whole batch ("dynamic"), or of every image ("fixed").

The released evaluation samples too. Here it is one of three, all of them reproducible:
"dynamic": the round(sum of p) most probable tokens of an image; "sampled": as released, the noise
following from the configuration's seed and the image itself; "static": round(target x patches) of
them. Keeping what is more probable than not, the obvious rule, would keep nobody where targets are
below one half, and is not offered.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxseg.bypass import Choice, Cut, Look, falling
from jaxseg.errors import UserError
from jaxseg.losses import Term, usage_term
from jaxseg.models.gates import Gate, Predictor, sampled, straight_through
from jaxseg.selection import best_of_row

SELECTIONS = ("dynamic", "sampled", "static")
GATES = {"mlp": Gate, "complex": Predictor}


@dataclass(frozen=True)
class Skip:
    """Who skips which blocks.

    layers: (1-based) before which a gate decides; its choice holds until the next gate. keep:
    targets of the shares used. gate: "mlp" or "complex", DynamicViT's (table 4), whose mean is over
    the patches that the last gate let through. preserve, reactivate: see above (table 3). ratio:
    "dynamic" or "fixed"; ratio_weight: of that loss.
    """

    layers: tuple[int, ...] = tuple(range(4, 13))
    keep: tuple[float, ...] = (0.7,) * 3 + (0.49,) * 3 + (0.343,) * 3
    gate: str = "mlp"
    preserve: bool = True
    reactivate: bool = True
    ratio: str = "dynamic"
    ratio_weight: float = 4.0
    selection: str = "dynamic"

    listens = False
    fuses = False
    needs_class_token = False
    distil = 0.0

    def __post_init__(self):
        if self.selection not in SELECTIONS:
            raise UserError(
                f"config.method.selection={self.selection!r}: choose one of {', '.join(SELECTIONS)}"
            )
        if self.gate not in GATES:
            raise UserError(f"config.method.gate={self.gate!r}: choose one of {', '.join(GATES)}")
        if self.ratio not in ("dynamic", "fixed"):
            raise UserError(f"config.method.ratio={self.ratio!r}: choose dynamic or fixed")
        if self.selection == "static" and not self.reactivate:
            falling(self.keep)

    @property
    def cuts(self) -> tuple[Cut, ...]:
        return tuple(Cut(layer - 1) for layer in self.layers)

    @property
    def fixed_counts(self) -> bool:
        return self.selection == "static"

    def gates(self, width: int) -> list:
        return [GATES[self.gate](width) for _ in self.layers]

    def choose(self, gates, look: Look) -> Choice:
        logits = gates[look.number](look.rows, look.inside & look.patch)
        if look.key is not None:
            weight = straight_through(logits, jax.random.gumbel(look.key, logits.shape))
            weight = jnp.where(look.patch, weight, 0.0)
            if not self.reactivate and look.before is not None:
                weight = weight * look.before
            return Choice(weight > 0, weight=weight, among=look.patch)
        open_ = look.patch & (jnp.ones_like(look.inside) if self.reactivate else look.inside)
        if self.selection == "sampled":
            return Choice(open_ & sampled(logits, look.carry.noise, look.number))
        p = jax.nn.softmax(logits)[..., 0]
        if self.selection == "static":
            count = look.count(lambda n: max(1, round(self.keep[look.number] * n)))
            return Choice(best_of_row(p, open_, count), count)
        count = jnp.round(jnp.where(open_, p, 0.0).sum(axis=1)).astype(jnp.int32)
        return Choice(best_of_row(p, open_, count))

    def terms(self, choices: list[Choice], prefix: int, batch_axis: str | None) -> dict[str, Term]:
        used, among = zip(*(c.of_patches(prefix) for c in choices), strict=True)
        per_image = self.ratio == "fixed"
        return {
            "ratio": usage_term(used, among, self.keep, self.ratio_weight, per_image, batch_axis)
        }

    def macs(self, width: int, patches: int, before, after) -> float:
        """Of all gates, of which each sees all patches."""
        del before, after
        return len(self.layers) * patches * GATES[self.gate].macs(width)
