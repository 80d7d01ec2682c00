"""A segmenter whose blocks work on chosen tokens: SViT, DynamicViT, EViT, Evo-ViT, ATS.

Their one fate is Bypass (`jaxseg.bypass`). A stage runs from one cut to the next; a cut may lie
between the two halves of a block. Heads read the map, so they see every patch; that of a classifier
sees the class token beside them.

Patches may share tokens from the start, and tokens may leave for good after a head: both happen to
the rows of the map, of which the method then chooses among fewer. So merging, choosing and exits
combine without knowing of each other. An exit is one more cut, at which nothing is chosen.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, UInt8

from jaxseg.bypass import (
    Choice,
    Cut,
    Journey,
    Look,
    in_rows,
    of_patches,
    read,
    rejoin,
    settle,
    spread,
)
from jaxseg.execute import Masked, Packing
from jaxseg.losses import Term
from jaxseg.models.classifier import ClassHead
from jaxseg.models.distillation import distilled, teacher, teacher_arrays
from jaxseg.models.gates import Chooser, fingerprint
from jaxseg.models.heads import Logits
from jaxseg.models.layers import subkeys
from jaxseg.models.method import Method
from jaxseg.models.network import Arrays
from jaxseg.models.segmenter import Segmenter, SegmenterSpec, on_grid
from jaxseg.tokens import Carry, Rows


class Stop(NamedTuple):
    """Where a stage ends: at cut ``number`` of the method, or at an exit behind head ``head``."""

    cut: Cut
    number: int
    head: int | None = None


@dataclass(frozen=True)
class SparseSpec(SegmenterSpec):
    """``seed``: what random choices at inference start from. ``off``: everybody is chosen."""

    method: Method | None = None
    seed: int = 0
    off: bool = False

    @property
    def stops(self) -> tuple[Stop, ...]:
        """In the order of depth; where both meet, tokens leave before the method chooses."""
        exits = [
            Stop(Cut(self.heads[i].taps[-1] + 1, leaves=True), number, i)
            for number, i in enumerate(self.exits)
        ]
        chosen = [] if self.off else [Stop(cut, n) for n, cut in enumerate(self.method.cuts)]
        return tuple(sorted([*exits, *chosen], key=lambda stop: stop.cut.position))

    @property
    def cuts(self) -> tuple[Cut, ...]:
        return tuple(stop.cut for stop in self.stops)

    @property
    def artificial(self) -> bool:
        """Whether the class token is the method's own."""
        return self.method.needs_class_token and not self.vit.class_token

    @property
    def prefix(self) -> int:
        return int(self.artificial or self.vit.class_token)

    @property
    def adaptive(self) -> bool:
        return bool(self.stops) or self.merge is not None

    @property
    def executor(self) -> Masked | Packing | None:
        if not self.adaptive:
            return Masked()
        return Packing() if self.fixed_counts else None

    @property
    def fixed_counts(self) -> bool:
        """Whether it is known beforehand how many tokens of an image go through each block."""
        return self.method.fixed_counts and not self.exits and self.merge is None

    @property
    def grows(self) -> bool:
        return self.method.fuses

    @property
    def stages(self) -> int:
        return len(self.stops) + 1

    def make(self, batch_axis: str | None = None) -> "SparseSegmenter":
        return SparseSegmenter(self, batch_axis)

    def dense(self) -> "SparseSpec":
        return replace(super().dense(), off=True)

    def teacher_arrays(self, arrays: Arrays) -> Arrays:
        return teacher_arrays(self, arrays)

    def teach(self, model: "SparseSegmenter", arrays: Arrays) -> None:
        """Lets a model in training learn from the arrays of `teacher_arrays`, prefix removed."""
        model.teacher = teacher(self, arrays)


class SparseSegmenter(Segmenter):
    """``stages``, ``begin``, ``decide`` and ``finish`` are what `jaxseg.execute` drives."""

    def __init__(self, spec: SparseSpec, batch_axis: str | None = None):
        super().__init__(spec, batch_axis)
        width = spec.vit.width
        self.method = Chooser(width, spec.method.gates(width), spec.artificial)
        self.batch_axis = batch_axis
        self.teacher: Callable | None = None  # images -> logits of the last head, last features

    def begin(self, images: Float[Array, "B H W 3"]) -> Journey:
        """Everybody in rows, class token first."""
        noise, start = fingerprint(images, self.spec.seed), super().begin(images)
        x, there, owner = start.x, start.layout.valid, start.owner
        if there is None and self.spec.exits:
            there = jnp.ones(x.shape[:2], bool)
        if self.spec.artificial:
            token = self.method.class_token[...].astype(x.dtype)
            token = jnp.broadcast_to(token, (len(x), 1, x.shape[-1]))
            x = jnp.concatenate([token, x], axis=1)
            if there is not None:
                there = jnp.pad(there, ((0, 0), (1, 0)), constant_values=True)
            if owner is not None:
                owner = owner + 1 + jnp.arange(len(x))[:, None]
        patches = math.prod(start.grid)
        return Journey(
            x,
            Rows(None if start.layout.valid is None else there, self.spec.prefix),
            start.grid,
            owner,
            left=jnp.full((len(x), patches), -1, jnp.int32),
            window=start.window,
            map=x,
            there=there,
            inside=there,
            noise=noise,
        )

    def decide(self, carry: Journey, stage: int) -> tuple[Journey, Choice]:
        """Blocks up to the cut or exit that ends ``stage``, and the decision there."""
        stop, keys = self.spec.stops[stage], self._no_keys()
        taps = self._next_taps(stage)
        begin = self.spec.stops[stage - 1].cut.position if stage else 0
        if stop.head is None:
            return self._to_cut(carry, begin, stop, taps, keys[0], None)
        following = next(i for i in self.spec.active if i > stop.head)
        carry = self._run(carry, begin, stop.cut.position, taps, keys[0])
        view, logits = self._map_at_head(stop.head, carry, None)
        canvas, plan = self._judge(stop.head, following, view, logits)
        return settle(replace(carry, canvas=canvas, taps=()), plan, stop.number)

    def finish(self, carry: Journey) -> Float[Array, "B r c K"]:
        """The remaining blocks and the last head: scores on the grid."""
        begin = self.spec.stops[-1].cut.position if self.spec.stops else 0
        taps = self._next_taps(len(self.spec.stops))
        carry = self._run(carry, begin, self._end(-1), taps, self._no_keys()[0])
        return self._scores(*self._map_at_head(-1, carry, None))

    def __call__(
        self, images: Float[Array, "B H W 3"], *, key: Key[Array, ""] | None = None
    ) -> list:
        """The logits of every head on the grid."""
        return self._forward(images, key)[0]

    def losses(
        self,
        images: Float[Array, "B H W 3"],
        labels: UInt8[Array, "B H W"],
        *,
        key: Key[Array, ""] | None = None,
    ) -> dict[str, Term]:
        """Loss terms of all heads, ``method.*`` of the choices, ``distil.*`` of a teacher."""
        outputs, carry, choices = self._forward(images, key)
        terms = self._head_losses(outputs, labels)
        own = self.spec.method.terms(choices, self.spec.prefix, self.batch_axis) if choices else {}
        terms |= {f"method.{name}": term for name, term in own.items()}
        if self.teacher is not None:
            inside = jnp.ones(carry.map.shape[:2], bool) if carry.inside is None else carry.inside
            kept = of_patches(carry, inside[..., None])[..., 0]
            student = outputs[-1], of_patches(carry, carry.taps[-1])
            weight = self.spec.method.distil
            terms |= distilled(self.heads[-1], student, self.teacher(images), kept, weight)
        return terms

    def _end(self, i: int) -> int:
        """Position behind the last block that head ``i`` reads."""
        return 2 * (self.spec.heads[i].taps[-1] + 1)

    def _next_taps(self, stage: int) -> tuple[int, ...]:
        """What the first head from ``stage`` on reads, of those that inference runs."""
        exits = (stop.head for stop in self.spec.stops[stage:] if stop.head is not None)
        return self.spec.heads[next(exits, -1)].taps

    def _forward(self, images, key) -> tuple[list, Journey, list[Choice]]:
        """Logits of all heads, the last carry, all choices: what training sees."""
        vit_key, cut_key, *head_keys = subkeys(key, 2 + len(self.heads))
        block_keys = subkeys(vit_key, len(self.vit.blocks))
        cuts = [stop for stop in self.spec.stops if stop.head is None]
        cut_keys = subkeys(cut_key, len(cuts))
        heads = [(self._end(i), 0, i) for i in range(len(self.heads))]
        places = sorted([*heads, *((stop.cut.position, 1, stop.number) for stop in cuts)])
        carry, begin, outputs, choices, canvases = self.begin(images), 0, [], [], {}
        for position, is_cut, number in places:
            taps = self.spec.heads[min(len(outputs), len(self.heads) - 1)].taps
            if is_cut:
                carry, choice = self._to_cut(
                    carry, begin, cuts[number], taps, block_keys, cut_keys[number]
                )
                choices.append(choice)
                # As many of each image, and no gradient of the choice to pass on: less work packed.
                known = choice.weight is None and choice.count is not None
                carry = (Packing() if known else Masked()).pick(carry, choice)
            else:
                carry = self._run(carry, begin, position, taps, block_keys)
                carry = replace(carry, canvas=canvases.get(number))
                view, logits = self._map_at_head(number, carry, head_keys[number])
                outputs.append(on_grid(view, logits))
                if number in self.spec.exits:
                    canvases, plan = self._judge_for_all(number, view, logits)
                    carry = Masked().pick(*settle(carry, plan, self.spec.exits.index(number)))
                if number < len(self.heads) - 1:
                    carry = replace(carry, taps=())
            begin = position
        return outputs, carry, choices

    def _no_keys(self) -> tuple[list[None], list[None]]:
        return [None] * len(self.vit.blocks), [None] * len(self.heads)

    def _to_cut(self, carry: Journey, begin: int, stop: Stop, taps, block_keys, cut_key):
        """A stage up to its cut, the tokens in rows again, and the choice."""
        cut = stop.cut
        before = carry.reading
        if cut.inside:
            carry = self._run(carry, begin, cut.position - 1, taps, block_keys)
            x, heard = self._halves(carry, cut.position - 1, cut.position, block_keys)
            rows = spread(carry, x, carry.map)
            heard = None if heard is None else spread(carry, heard)
        else:
            carry = self._run(carry, begin, cut.position, taps, block_keys)
            rows, heard = carry.map, carry.heard
        patch = jnp.broadcast_to(jnp.arange(rows.shape[1]) >= self.spec.prefix, rows.shape[:2])
        patch = patch if carry.there is None else patch & carry.there
        look = Look(
            number=stop.number,
            carry=carry,
            rows=rows,
            inside=jnp.ones(rows.shape[:2], bool) if carry.inside is None else carry.inside,
            patch=patch,
            heard=heard,
            before=before,
            key=cut_key,
        )
        choice = self.spec.method.choose(getattr(self.method, "gates", ()), look)
        if not self.spec.fixed_counts:
            choice = choice._replace(count=None)
        return in_rows(carry, rows), choice

    def _run(self, carry: Journey, begin: int, end: int, taps, block_keys) -> Journey:
        """Half blocks up to position ``end``, written back; what heads read is kept on the way."""
        stops = {2 * (tap + 1): tap for tap in taps if begin < 2 * (tap + 1) <= end}
        # Gradients of a choice flow through the first block behind it alone: SViT without
        # reactivation reuses a mask "without gradient".
        first = 2 * (begin // 2 + 1)
        soft = {first} if carry.weight is not None and first <= end else set()
        for stop in sorted({*stops, *soft, end}):
            if stop > begin:
                x, heard = self._halves(carry, begin, stop, block_keys)
                heard = None if heard is None else spread(carry, heard)
                carry = replace(carry, x=x, heard=heard)
            carry, begin = rejoin(carry), stop
            if stop in soft:
                carry = replace(carry, x=carry.map, weight=None)
            if stop in stops:
                seen = self.vit.normed(read(carry, not self.spec.method.preserve), stops[stop])
                carry = replace(carry, taps=(*carry.taps, seen))
        return carry

    def _halves(self, carry: Journey, begin: int, end: int, block_keys):
        """Tokens after the half blocks ``begin`` to ``end``, and what the last attention says."""
        layout, last = carry.layout, (end - 1) // 2 * 2

        def halves(x):
            heard = None
            for position in range(begin, end):
                block = self.vit.blocks[position // 2]
                key = subkeys(block_keys[position // 2], 2)[position % 2]
                if position % 2:
                    x = block.transform(x, layout, key=key)
                elif position == last and self.spec.method.listens:
                    x, heard = block.mix_heard(x, layout, key=key)
                else:
                    x = block.mix(x, layout, key=key)
            return x, heard

        whole = isinstance(layout, Rows) and layout.valid is None
        if whole and block_keys[0] is None and len(carry.x) > 1 and jax.default_backend() == "cpu":
            # Image by image: the activations of one stay in the caches.
            one = jax.lax.map(lambda image: halves(image[None]), carry.x)
            return jax.tree.map(lambda value: value[:, 0], one)
        return halves(carry.x)

    def _map_at_head(self, i: int, carry: Journey, key) -> tuple[Carry, Logits]:
        """The rows of the map as head ``i`` reads them, and its logits. What has been fused belongs
        to no place and is left out."""
        prefix, patches = self.spec.prefix, math.prod(carry.grid)
        if carry.there is None:  # then rows without class tokens are just the patches
            first = 0 if isinstance(self.heads[i], ClassHead) else prefix
            layout = Rows(None, prefix - first)
        else:
            first, layout = 0, Rows(carry.there[:, : prefix + patches], prefix)
        seen = tuple(each[:, first : prefix + patches] for each in carry.taps)
        settled = {name: getattr(carry, name) for name in ("owner", "canvas", "left", "window")}
        return self.at_head(i, Carry(seen[-1], layout, carry.grid, **settled), seen, key)
