"""A segmenter whose blocks work on chosen tokens: SViT, DynamicViT, EViT, Evo-ViT, ATS.

Their one fate is Bypass (`jaxseg.bypass`). A stage runs from one cut to the next; a cut may lie
between the two halves of a block. Heads read the map, so they see every patch; that of a classifier
sees the class token beside them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key, UInt8

from jaxseg.bypass import Choice, Cut, Journey, Look, in_rows, read, rejoin, spread
from jaxseg.execute import Masked, Packing
from jaxseg.losses import Term, feature_distillation, score_distillation
from jaxseg.models.classifier import ClassHead
from jaxseg.models.gates import Chooser, fingerprint
from jaxseg.models.heads import AtmHead, CascadeHead
from jaxseg.models.layers import subkeys
from jaxseg.models.network import TEACHER, Arrays, network
from jaxseg.models.segmenter import Segmenter, SegmenterSpec
from jaxseg.tokens import Rows


class Method(Protocol):
    """What `jaxseg.methods` offers for such a model: frozen, a file per paper.

    cuts: where it decides, in rising order. preserve: who is not chosen keeps its features for the
    heads, else reads as zero. listens: it asks for the class attention of the last block before a
    cut. fixed_counts: `Choice.count` is always given. distil: weight of what a dense teacher says.
    """

    cuts: tuple[Cut, ...]
    preserve: bool
    listens: bool
    needs_class_token: bool
    fixed_counts: bool
    distil: float

    def gates(self, width: int) -> list[nnx.Module]:
        """Its parameters, one module per cut, or none."""

    def choose(self, gates: Sequence[nnx.Module], look: Look) -> Choice:
        """The decision at a cut."""

    def terms(self, choices: list[Choice], prefix: int, batch_axis: str | None) -> dict[str, Term]:
        """Its losses, from what has been chosen in training."""

    def macs(self, width: int, patches: int, alive: Sequence[float]) -> float:
        """Of the decisions themselves; ``alive`` as in `jaxseg.execute.Answer`."""


@dataclass(frozen=True)
class SparseSpec(SegmenterSpec):
    """``seed``: what random choices at inference start from. ``off``: everybody is chosen."""

    method: Method | None = None
    seed: int = 0
    off: bool = False

    @property
    def cuts(self) -> tuple[Cut, ...]:
        return () if self.off else self.method.cuts

    @property
    def artificial(self) -> bool:
        """Whether the class token is the method's own."""
        return self.method.needs_class_token and not self.vit.class_token

    @property
    def prefix(self) -> int:
        return int(self.artificial or self.vit.class_token)

    @property
    def adaptive(self) -> bool:
        return not self.off

    @property
    def executor(self) -> Masked | Packing | None:
        if self.off:
            return Masked()
        return Packing() if self.method.fixed_counts else None

    @property
    def stages(self) -> int:
        return len(self.cuts) + 1

    def make(self, batch_axis: str | None = None) -> "SparseSegmenter":
        return SparseSegmenter(self, batch_axis)

    def dense(self) -> "SparseSpec":
        return replace(self, off=True)

    def teacher_arrays(self, arrays: Arrays) -> Arrays:
        """Of a dense model with this ViT and these heads: copies of what distillation needs."""
        last = f"heads.{len(self.heads) - 1}."
        needed = {n: v for n, v in arrays.items() if n.startswith(("vit.", last))}
        return {TEACHER + n.replace(last, "heads.0.", 1): v for n, v in needed.items()}

    def teach(self, model: "SparseSegmenter", arrays: Arrays) -> None:
        """Lets a model in training learn from the arrays of `teacher_arrays`, prefix removed."""
        head = self.heads[-1]
        dense = network(SegmenterSpec(self.vit, (head,)))
        frozen = dense.bind(*dense.split(arrays))

        def teacher(images):
            prefix, grid = int(self.vit.class_token), frozen.vit.grid(*images.shape[1:3])
            rows = list(frozen.vit(images, head.taps).values())
            return _of_rows(frozen.heads[0], rows, grid, prefix), rows[-1][:, prefix:]

        model.teacher = teacher


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
        noise = fingerprint(images, self.spec.seed)
        images = images.astype(self.vit.pos_embed[...].dtype)
        x = self.vit.embed(images)
        if self.spec.artificial:
            token = self.method.class_token[...].astype(x.dtype)
            token = jnp.broadcast_to(token, (len(x), 1, x.shape[-1]))
            x = jnp.concatenate([token, x], axis=1)
        layout, grid = Rows(None, self.spec.prefix), self.vit.grid(*images.shape[1:3])
        left = jnp.full((len(x), grid[0] * grid[1]), -1, jnp.int32)
        return Journey(x, layout, grid, canvas=x, left=left, noise=noise)

    def decide(self, carry: Journey, stage: int) -> tuple[Journey, Choice]:
        """Blocks up to the cut that ends ``stage``, and the decision there."""
        return self._to_cut(carry, stage, self.spec.heads[-1].taps, *self._no_keys())

    def finish(self, carry: Journey) -> Float[Array, "B r c K"]:
        """The remaining blocks and the last head: scores on the grid."""
        taps = self.spec.heads[-1].taps
        carry = self._run(carry, len(self.spec.cuts), self._end, taps, self._no_keys()[0])
        size = tuple(side * self.spec.vit.patch for side in carry.grid)
        return self.heads[-1].grid_scores(self._head(-1, carry, carry.taps, None), size)

    def __call__(
        self, images: Float[Array, "B H W 3"], *, key: Key[Array, ""] | None = None
    ) -> list:
        """The logits of every head on the grid (masked)."""
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
            terms |= self._distilled(outputs[-1], carry, *self.teacher(images))
        return terms

    @property
    def _end(self) -> int:
        """Position behind the last block that a head reads."""
        return 2 * (self.spec.heads[-1].taps[-1] + 1)

    def _forward(self, images, key) -> tuple[list, Journey, list[Choice]]:
        """Logits of all heads, the last carry, all choices: what training sees."""
        vit_key, cut_key, *head_keys = subkeys(key, 2 + len(self.heads))
        block_keys = subkeys(vit_key, len(self.vit.blocks))
        cut_keys = subkeys(cut_key, len(self.spec.cuts))
        taps = tuple(tap for head in self.spec.heads for tap in head.taps)
        carry, choices = self.begin(images), []
        for stage in range(len(self.spec.cuts)):
            carry, choice = self._to_cut(carry, stage, taps, block_keys, cut_keys)
            choices.append(choice)
            carry = Masked().pick(carry, choice)
        carry = self._run(carry, len(self.spec.cuts), self._end, taps, block_keys)
        read_maps = dict(zip(taps, carry.taps, strict=True))
        outputs = [
            self._head(i, carry, tuple(read_maps[tap] for tap in head.taps), head_key)
            for i, (head, head_key) in enumerate(zip(self.spec.heads, head_keys, strict=True))
        ]
        return outputs, carry, choices

    def _no_keys(self) -> tuple[list[None], list[None]]:
        return [None] * len(self.vit.blocks), [None] * len(self.spec.cuts)

    def _to_cut(self, carry: Journey, stage: int, taps, block_keys, cut_keys):
        """A stage up to its cut, the tokens in rows again, and the choice."""
        cut = self.spec.cuts[stage]
        before = carry.reading
        if cut.inside:
            carry = self._run(carry, stage, cut.position - 1, taps, block_keys)
            x, heard = self._halves(carry, cut.position - 1, cut.position, block_keys)
            rows = spread(carry, x, carry.canvas)
        else:
            carry, heard = self._run_heard(carry, stage, cut.position, taps, block_keys)
            rows = carry.canvas
        inside = jnp.ones(rows.shape[:2], bool) if carry.inside is None else carry.inside
        look = Look(
            number=stage,
            carry=carry,
            rows=rows,
            inside=inside,
            patch=jnp.arange(rows.shape[1]) >= self.spec.prefix,
            heard=None if heard is None else spread(carry, heard),
            before=before,
            key=cut_keys[stage],
        )
        choice = self.spec.method.choose(getattr(self.method, "gates", ()), look)
        return in_rows(carry, rows), choice

    def _run(self, carry: Journey, stage: int, end: int, taps, block_keys) -> Journey:
        return self._run_heard(carry, stage, end, taps, block_keys)[0]

    def _run_heard(self, carry: Journey, stage: int, end: int, taps, block_keys):
        """``stage`` up to position ``end``, written back; what heads read is kept on the way."""
        begin = self.spec.cuts[stage - 1].position if stage else 0
        stops = {2 * (tap + 1): tap for tap in taps if begin < 2 * (tap + 1) <= end}
        # Gradients of a choice flow through the first block behind it alone: SViT without
        # reactivation reuses a mask "without gradient".
        first = 2 * (begin // 2 + 1)
        soft = {first} if carry.weight is not None and first < end else set()
        heard = None
        for stop in sorted({*stops, *soft, end}):
            if stop > begin:
                x, heard = self._halves(carry, begin, stop, block_keys)
                carry = replace(carry, x=x)
            carry, begin = rejoin(carry), stop
            if stop in soft:
                carry = replace(carry, x=carry.canvas, weight=None)
            if stop in stops:
                seen = self.vit.normed(read(carry, not self.spec.method.preserve), stops[stop])
                carry = replace(carry, taps=(*carry.taps, seen))
        return carry, heard

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

    def _head(self, i: int, carry: Journey, taps, key):
        """Logits of head ``i`` on the grid, from maps of all patches."""
        return _of_rows(self.heads[i], taps, carry.grid, self.spec.prefix, key)

    def _distilled(self, logits, carry: Journey, theirs, features) -> dict[str, Term]:
        weight, prefix = self.spec.method.distil, self.spec.prefix
        patches = slice(prefix, prefix + features.shape[1])
        kept = jnp.ones(features.shape[:2], bool)
        kept = kept if carry.inside is None else carry.inside[:, patches]
        head = self.heads[-1]
        scores = [class_shares(head, each) for each in (logits, theirs)]
        return {
            "distil.scores": score_distillation(*scores, weight),
            "distil.features": feature_distillation(
                carry.taps[-1][:, patches], features, kept, weight
            ),
        }


def class_shares(head, logits) -> Float[Array, "B r c K"]:
    """Class scores on the grid, none negative, of any head."""
    if isinstance(head, CascadeHead):
        return head.grid_scores(logits, logits[-1].mask.shape[1:3])
    if isinstance(head, AtmHead):
        return head.grid_scores(logits, logits.mask.shape[1:3])
    return jax.nn.softmax(logits.mask.astype(jnp.float32))


def _of_rows(
    head, rows: Sequence[Float[Array, "B C D"]], grid: tuple[int, int], prefix: int, key=None
):
    """Logits of a head on the grid, from ``prefix`` class tokens, patches and what is fused."""
    first = 0 if isinstance(head, ClassHead) else prefix
    seen = [each[:, first : prefix + grid[0] * grid[1]] for each in rows]
    if not head.per_token:
        seen = [each.reshape(len(each), *grid, -1) for each in seen]
    return _on_grid(head(tuple(seen), Rows(None, prefix - first), key=key), grid)


def _on_grid(logits, grid: tuple[int, int]):
    """A mask row per slot as a map; all levels of a cascade."""
    if not hasattr(logits, "mask"):
        return tuple(_on_grid(level, grid) for level in logits)
    if logits.mask.ndim == 4:
        return logits
    return logits._replace(mask=logits.mask.reshape(len(logits.mask), *grid, -1))
