"""A ViT with one or more heads: images in; logits, scores or loss terms out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key, UInt8

from jaxseg.execute import Masked, Packing, leave
from jaxseg.fates import Grades, Plan
from jaxseg.losses import Term
from jaxseg.models.atm import AtmSpec
from jaxseg.models.classifier import ClassHead, ClassSpec
from jaxseg.models.heads import AtmHead, CascadeHead, ConvHead, ConvSpec, Head, Logits
from jaxseg.models.layers import subkeys
from jaxseg.models.mask_transformer import MaskSpec, MaskTransformerHead
from jaxseg.models.merged import MergeSpec, begin_merged
from jaxseg.models.vit import ViT, ViTSpec
from jaxseg.selection import best_class
from jaxseg.tokens import Carry, Rows, readout

Decide = Callable[[Grades], Plan]


@dataclass(frozen=True)
class HeadSpec:
    """A head and the blocks (0-based) it reads. ATM with several taps is SegViT's cascade.

    ``decide``: which tokens leave once this head has looked at them; None: nobody.
    """

    taps: tuple[int, ...]
    sizes: AtmSpec | ConvSpec | MaskSpec | ClassSpec
    decide: Decide | None = None


@dataclass(frozen=True)
class SegmenterSpec:
    """Heads in the order of depth: the last one answers, the others are auxiliary.

    ``final_at_exit``: at inference a patch that leaves keeps its scores. Otherwise it keeps its
    mask logits, and ATM multiplies those with the class probabilities of the last head, as DToP's
    released code does. Without meaning where the last head is convolutional.

    ``merge``: patches that share a token from the start; None: every patch has its own.
    """

    vit: ViTSpec
    heads: tuple[HeadSpec, ...]
    final_at_exit: bool = False
    merge: MergeSpec | None = None

    def __post_init__(self):
        taps = [tap for head in self.heads for tap in head.taps]
        if taps != sorted(set(taps)):
            raise ValueError(f"taps {taps} must rise from head to head")

    @property
    def classes(self) -> int:
        return self.heads[-1].sizes.classes

    @property
    def exits(self) -> tuple[int, ...]:
        """The heads (0-based) after which tokens leave."""
        return tuple(i for i, head in enumerate(self.heads) if head.decide is not None)

    @property
    def active(self) -> tuple[int, ...]:
        """The heads that inference runs, one per stage: those that decide, and the last."""
        return (*self.exits, len(self.heads) - 1)

    @property
    def adaptive(self) -> bool:
        """Whether what is computed depends on the image, or is less than all."""
        return bool(self.exits) or self.merge is not None

    @property
    def executor(self) -> Masked | Packing | None:
        """What inference lays tokens out with; None: packed, the host picks capacities."""
        return None if self.adaptive else Masked()

    @property
    def grows(self) -> bool:
        """Whether tokens are added on the way, so that no stage fits the buffers of the last."""
        return False

    @property
    def stages(self) -> int:
        return len(self.active)

    def make(self, batch_axis: str | None = None) -> "Segmenter":
        return Segmenter(self, batch_axis)

    def dense(self) -> "SegmenterSpec":
        """The same network, the same parameters; every patch has a token, none leaves or skips."""
        heads = tuple(replace(head, decide=None) for head in self.heads)
        return replace(self, heads=heads, merge=None)


class Segmenter(nnx.Module):
    """Images in; logits, scores or loss terms out. ``key`` None means inference.

    ``stages``, ``begin``, ``decide`` and ``finish`` are what `jaxseg.execute` drives.
    """

    def __init__(self, spec: SegmenterSpec, batch_axis: str | None = None):
        self.spec = spec
        self.vit = ViT(spec.vit)
        self.heads = nnx.List([_make_head(spec.vit.width, head, batch_axis) for head in spec.heads])
        if spec.merge is not None:
            self.policy = spec.merge.policy.make()

    @property
    def stages(self) -> int:
        return self.spec.stages

    def begin(self, images: Float[Array, "B H W 3"]) -> Carry:
        """All patches in rows, some sharing a slot; computed in the dtype of the parameters.

        The policy is not trained here: its decisions are hard, its statistics stay.
        """
        images = images.astype(self.vit.pos_embed[...].dtype)
        grid = self.vit.grid(*images.shape[1:3])
        if self.spec.merge is None:
            return Carry(self.vit.embed(images), Rows(None, int(self.spec.vit.class_token)), grid)
        scores = {side: jax.nn.sigmoid(x) for side, x in self.policy(images).items()}
        windows = self.spec.merge.decide(jax.lax.stop_gradient(scores), grid)
        return begin_merged(self.vit, images, windows)

    def decide(self, carry: Carry, stage: int) -> tuple[Carry, Plan]:
        """Blocks up to the head of ``stage``, and its decision."""
        active = self.spec.active
        i, following = active[stage : stage + 2]
        carry, logits = self._look(carry, active[:stage], i, self._no_keys())
        canvas, plan = self._judge(i, following, carry, logits)
        return replace(carry, canvas=canvas), plan

    def finish(self, carry: Carry) -> Float[Array, "B r c K"]:
        """The remaining blocks and the last head: scores on the grid.

        Of a head that is not linear behind its grid (SegViT's cascade): those of the padded image.
        """
        *before, i = self.spec.active
        return self._scores(*self._look(carry, before, i, self._no_keys()))

    def __call__(
        self, images: Float[Array, "B H W 3"], *, key: Key[Array, ""] | None = None
    ) -> list:
        """The logits of every head on the grid, tokens leaving on the way (masked)."""
        vit_key, *head_keys = subkeys(key, 1 + len(self.heads))
        keys = (subkeys(vit_key, len(self.vit.blocks)), head_keys)
        carry, out, canvases = self.begin(images), [], {}
        for i, spec in enumerate(self.spec.heads):
            carry = replace(carry, canvas=canvases.get(i))
            carry, logits = self._look(carry, range(i), i, keys)
            out.append(on_grid(carry, logits))
            if spec.decide is not None:
                number = self.spec.exits.index(i)
                canvases, plan = self._judge_for_all(i, carry, logits)
                carry = leave(Masked(), carry, plan, number)
        return out

    def losses(
        self,
        images: Float[Array, "B H W 3"],
        labels: UInt8[Array, "B H W"],
        *,
        key: Key[Array, ""] | None = None,
    ) -> dict[str, Term]:
        """Loss terms of all heads, named ``aux_0.loss_ce`` ... ``decode.loss_ce``.

        With exits, each is taken over all patches: those that have left keep the logits of the head
        that saw them last, and gradients flow back into it, as in DToP's released code.
        """
        return self._head_losses(self(images, key=key), labels)

    def _head_losses(self, outputs: list, labels: UInt8[Array, "B H W"]) -> dict[str, Term]:
        names = [f"aux_{i}" for i in range(len(self.heads) - 1)] + ["decode"]
        return {
            f"{name}.{term}": value
            for name, head, logits in zip(names, self.heads, outputs, strict=True)
            for term, value in head.losses(logits, labels).items()
        }

    @property
    def _keeps_scores(self) -> bool:
        """Whether patches that leave keep scores: logits of a convolutional head are final anyway,
        and they are what its maps interpolate."""
        return self.spec.final_at_exit and isinstance(self.heads[-1], AtmHead)

    def _no_keys(self) -> tuple[list[None], list[None]]:
        return [None] * len(self.vit.blocks), [None] * len(self.heads)

    def _look(self, carry: Carry, before: Sequence[int], i: int, keys) -> tuple[Carry, Logits]:
        """The blocks behind those of the heads ``before``, up to head ``i``, and its logits."""
        first = self.spec.heads[before[-1]].taps[-1] + 1 if before else 0
        x, taps = carry.x, []
        for tap in self.spec.heads[i].taps:
            x = self.vit.run(x, carry.layout, range(first, tap + 1), keys=keys[0])
            taps.append(self.vit.normed(x, tap))
            first = tap + 1
        return self.at_head(i, replace(carry, x=x), taps, keys[1][i])

    def at_head(self, i: int, carry: Carry, taps: Sequence[Array], key) -> tuple[Carry, Logits]:
        """``carry``, and what head ``i`` says of ``taps``, which lie as it does."""
        if not self.heads[i].per_token:
            taps = [_patches_on_grid(carry, each) for each in taps]
        return carry, self.heads[i](tuple(taps), carry.layout, key=key)

    def _judge(self, i: int, following: int, carry: Carry, logits: Logits):
        """What patches that leave after head ``i`` keep, [B, N, K], and who they are."""
        scores = self.heads[i].token_scores(logits, carry.layout)
        if self._keeps_scores:
            canvas = readout(carry, scores)
        else:
            canvas = self._handed_on(i, following, on_grid(carry, logits))
        return canvas, self._plan(i, carry, scores)

    def _judge_for_all(self, i: int, carry: Carry, logits: Logits):
        """The same in training, where every later head reads what stays behind: by its number."""
        maps, later = on_grid(carry, logits), range(i + 1, len(self.heads))
        plan = self._plan(i, carry, self.heads[i].token_scores(logits, carry.layout))
        return {j: self._handed_on(i, j, maps) for j in later}, plan

    def _scores(self, carry: Carry, logits) -> Float[Array, "B r c K"]:
        """What the last head says, on the grid."""
        if self._keeps_scores and self.spec.exits:
            scores = readout(carry, self.heads[-1].token_scores(logits, carry.layout))
            return scores.reshape(len(scores), *carry.grid, -1)
        size = tuple(side * self.spec.vit.patch for side in carry.grid)
        return self.heads[-1].grid_scores(on_grid(carry, logits), size)

    def _plan(self, i: int, carry: Carry, scores: Float[Array, "*slots K"]) -> Plan:
        """The decision of head ``i``. It is hard: no gradient flows through it."""
        scores = jax.lax.stop_gradient(scores)
        slots = scores.shape[:-1]
        image = carry.layout.of_image(jnp.arange(len(carry.alive)), scores)
        graded = carry.layout.patches(scores)
        confidence, label = best_class(scores)
        grades = Grades(
            confidence=confidence.reshape(-1),
            label=label.reshape(-1),
            image=jnp.broadcast_to(image, slots).reshape(-1),
            graded=graded.reshape(-1),
            images=len(carry.alive),
            classes=scores.shape[-1],
        )
        return self.spec.heads[i].decide(grades)

    def _handed_on(self, i: int, following: int, maps: Logits) -> Float[Array, "B N K"]:
        """What patches that leave at head ``i`` keep, as mask logits of the following head.

        Heads of one kind share it as it is (DToP). Between kinds (DToP, table 6, of which nothing
        is released) the scores are what stays the same.
        """
        mask = maps.mask.reshape(len(maps.mask), -1, maps.mask.shape[-1])
        if type(self.heads[i]) is type(self.heads[following]):
            return mask
        scores = self.heads[i].token_scores(Logits(mask, maps.classes), Rows(None, 0))
        return self.heads[following].as_mask(scores)


def on_grid(carry: Carry, logits: Logits | tuple[Logits, ...]):
    """The same logits with a mask row per patch, [B, r, c, K]; a map stays as it is."""
    if not isinstance(logits, Logits):
        return tuple(on_grid(carry, level) for level in logits)
    if logits.mask.ndim == 4:
        return logits
    mask = readout(carry, logits.mask)
    return logits._replace(mask=mask.reshape(len(mask), *carry.grid, -1))


def _patches_on_grid(carry: Carry, x: Float[Array, "B C D"]) -> Float[Array, "B r c D"]:
    return x[:, carry.layout.prefix :].reshape(len(x), *carry.grid, x.shape[-1])


def _make_head(width: int, head: HeadSpec, batch_axis: str | None) -> Head:
    if isinstance(head.sizes, ConvSpec):
        return ConvHead(width, head.sizes, batch_axis)
    if isinstance(head.sizes, MaskSpec):
        return MaskTransformerHead(width, head.sizes)
    if isinstance(head.sizes, ClassSpec):
        return ClassHead(width, head.sizes)
    if len(head.taps) > 1:
        return CascadeHead(width, head.sizes, len(head.taps))
    return AtmHead(width, head.sizes)


def with_decisions(spec: SegmenterSpec, decisions: Sequence[Decide]) -> SegmenterSpec:
    """The network with other decisions at its exits, one per exit."""
    heads = list(spec.heads)
    for i, decide in zip(spec.exits, decisions, strict=True):
        heads[i] = replace(heads[i], decide=decide)
    return replace(spec, heads=tuple(heads))
