"""DToP (Tang et al., ICCV 2023): confident tokens leave, the best of each class stay as context.

After an auxiliary head, a token whose best class score exceeds p0 is easy. Of the easy tokens of
each predicted class the k most confident stay, the others leave with that head's prediction
(section 3.2). Decisions are made afresh at every exit: who stayed as context may leave at the next.

The other rules are those of table 5, of which nothing is released. "Top-35 %" is read as "the most
confident 35 % of the tokens inside leave": that gives 84.4 GMACs for the 84.6 published, while
keeping 35 % of the easy tokens as context would give about 92.
"""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Bool

from jaxseg.errors import UserError
from jaxseg.fates import Grades, Plan
from jaxseg.selection import above_threshold, best_of_group, top_share

CONTEXT = ("top_k", "remove", "average", "average_top_k")


@dataclass(frozen=True)
class Exit:
    """Who leaves after one head.

    threshold: p0; confidence strictly above it is easy. share: this share of the tokens inside is
        easy instead, the most confident first; 0 = by threshold.
    context: what goes on for the easy tokens of each class. "top_k": the ``k`` best. "remove":
        nothing. "average": one token, their mean. "average_top_k": the ``k`` best, and one token
        that is the mean of the others.
    """

    threshold: float
    context: str = "top_k"
    k: int = 5
    share: float = 0.0

    def __post_init__(self):
        if not 0.0 <= self.threshold < 1.0:
            raise UserError(
                f"config.method.exitN.threshold={self.threshold}: use 0 to 1, where 1 is off"
            )
        if self.context not in CONTEXT:
            raise UserError(
                f"config.method.context={self.context!r}: choose one of {', '.join(CONTEXT)}"
            )
        if self.k < 1 and "top_k" in self.context:
            raise UserError(f"config.method.k={self.k}: use 1 or more, or context=remove")
        if not 0.0 <= self.share < 1.0:
            raise UserError(f"config.method.share={self.share}: use 0 (off) or more, less than 1")

    def __call__(self, grades: Grades) -> Plan:
        return self.plan(grades, self._easy(grades))

    def plan(self, grades: Grades, easy: Bool[Array, " S"]) -> Plan:
        """What becomes of the slots that are ``easy``."""
        group = grades.image * grades.classes + grades.label
        groups = grades.images * grades.classes
        leaves = easy
        if "top_k" in self.context:
            leaves &= ~best_of_group(grades.confidence, group, easy, groups, self.k)
        if "average" not in self.context:
            return Plan(leaves)
        speaker = best_of_group(grades.confidence, group, leaves, groups)
        slots = jnp.arange(leaves.size)
        of_group = jnp.zeros(groups, slots.dtype).at[group].max(jnp.where(speaker, slots, 0))
        return Plan(leaves, speaker, jnp.where(leaves, of_group[group], slots))

    def _easy(self, grades: Grades) -> Bool[Array, " S"]:
        if self.share:
            chosen = (grades.confidence, grades.image, grades.graded, grades.images)
            return top_share(*chosen, self.share)
        return grades.graded & above_threshold(grades.confidence, self.threshold)
