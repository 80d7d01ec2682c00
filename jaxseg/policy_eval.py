"""How well a policy knows windows of one class, and how many tokens are left if it is followed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from jaxseg import merging, purity
from jaxseg.data.classes import Source
from jaxseg.data.transforms import test_image, test_label
from jaxseg.inference import EvalSpec
from jaxseg.models.policy import PATCH, PolicySpec
from jaxseg.progress import Progress

Decide = Callable[[Mapping[int, Float[Array, "B R C"]], merging.Grid], Mapping[int, Array]]


class Graded(NamedTuple):
    """One image of a set.

    seen: uint8 pixels that the network saw. windows, oracle: side of the window that each patch is
    merged in, by the policy's decision and by the labels.
    """

    name: str
    seen: UInt8[np.ndarray, "h w 3"]
    windows: np.ndarray
    oracle: np.ndarray


@dataclass(frozen=True)
class PolicyResult:
    """Sums over a set. certain, decided: per side, windows with a score above 0.5, and those that
    the decision merges. tokens, oracle_tokens, patches: per image."""

    certain: dict[int, purity.Tally]
    decided: dict[int, purity.Tally]
    tokens: tuple[int, ...]
    oracle_tokens: tuple[int, ...]
    patches: tuple[int, ...]
    samples: tuple[Graded, ...]

    @property
    def score(self) -> float:
        """Mean over the sides of the F-score at 0.5: what the best checkpoint is chosen by."""
        rates = [purity.rates(tally) for tally in self.certain.values()]
        scores = [
            2 * r["precision"] * r["recall"] / max(r["precision"] + r["recall"], 1e-9)
            for r in rates
            if r["recall"] == r["recall"]  # sides of which the set has a window of one class
        ]
        return float(np.nan_to_num(scores).mean()) if scores else 0.0

    def summary(self) -> dict[str, float]:
        """Figures by name, of each side and of the token counts."""
        found = {"score": self.score}
        for kind, tallies in (("", self.certain), ("decided_", self.decided)):
            for side, tally in tallies.items():
                found |= {f"{kind}{n}_{side}": v for n, v in purity.rates(tally).items()}
        of = np.array(self.patches)
        found["tokens_left"] = float((np.array(self.tokens) / of).mean())
        found["tokens_left_oracle"] = float((np.array(self.oracle_tokens) / of).mean())
        return found


def table(result: PolicyResult) -> str:
    """`PolicyResult.summary` for people."""
    lines = [f"{'window':>8}{'windows':>10}{'of one class':>14}{'precision':>11}{'recall':>9}"]
    lines[0] += f"{'merged':>9}{'purity':>9}"
    for side, tally in result.certain.items():
        rates, decided = purity.rates(tally), purity.rates(result.decided[side])
        lines.append(
            f"{f'{side}x{side}':>8}{tally.windows:>10}{tally.pure / max(tally.windows, 1):>14.3f}"
            f"{rates['precision']:>11.3f}{rates['recall']:>9.3f}"
            f"{decided['share']:>9.3f}{decided['purity']:>9.3f}"
        )
    return "\n".join(lines)


def evaluate_policy(
    network, arrays: dict, source: Source, how: EvalSpec, decide: Decide, pictures: int = 0
) -> PolicyResult:
    """Grades every image whole, fitted into ``how.resize``; labels are resized by nearest pixel.

    ``network``: of a `PolicySpec`, its ``purity`` says when a window counts as of one class.
    Precision and recall are those at a score of 0.5; what is merged is what ``decide`` accepts.
    """
    spec: PolicySpec = network.spec
    grade = _grader(network, decide, len(source.classes))
    wanted = set(np.linspace(0, len(source) - 1, min(pictures, len(source))).astype(int).tolist())
    sums: dict[str, dict] = {"certain": {}, "decided": {}}
    tokens, oracle_tokens, patches, samples = [], [], [], []
    with Progress(len(source), "policy") as progress:
        for i in range(len(source)):
            sample = source[i]
            fit = how.resize or (None, None)
            image = test_image(sample["image"], *fit, how.mean, how.std)
            label = test_label(sample["label"], image.shape[:2])
            found = grade(arrays, image[None], label[None])
            for side in spec.sides:
                counts, target = found["counts"][side], found["target"][side]
                for kind in sums:
                    accepted = found[kind].get(side)
                    if accepted is None:
                        accepted = jnp.zeros_like(target, bool)
                    tally = purity.tally(accepted, target, counts)
                    sums[kind][side] = sums[kind][side] + tally if side in sums[kind] else tally
            windows, oracle = (np.asarray(found[n][0]) for n in ("windows", "oracle"))
            tokens.append(int(merging.token_count(windows[None])[0]))
            oracle_tokens.append(int(merging.token_count(oracle[None])[0]))
            patches.append(windows.size)
            if i in wanted:
                seen = (image * how.std + how.mean).round().clip(0, 255).astype(np.uint8)
                samples.append(Graded(sample["name"], seen, windows, oracle))
            progress.update(i + 1)
    return PolicyResult(
        sums["certain"],
        sums["decided"],
        tuple(tokens),
        tuple(oracle_tokens),
        tuple(patches),
        tuple(samples),
    )


def _grader(network, decide: Decide, classes: int):
    """(arrays, images [1, h, w, 3], labels uint8 [1, h, w]) -> all that is counted."""
    spec: PolicySpec = network.spec

    @jax.jit
    def grade(arrays, images, labels):
        model = network.bind(*network.split(arrays))
        logits = model(images)
        labels = purity.whole_patches(labels, PATCH)
        grid = tuple(n // PATCH for n in labels.shape[1:])
        smallest = purity.window_counts(labels, min(spec.sides) * PATCH, classes)
        counts = {side: purity.larger(smallest, side // min(spec.sides)) for side in spec.sides}
        target = {
            side: purity.window_targets(counts[side], model.purity[side], spec.border)
            for side in spec.sides
        }
        decided = decide({side: jax.nn.sigmoid(x) for side, x in logits.items()}, grid)
        return {
            "counts": counts,
            "target": target,
            "certain": {side: x > 0 for side, x in logits.items()},
            "decided": decided,
            "windows": merging.window_map(decided, grid),
            "oracle": merging.window_map(
                {side: target[side] == purity.ONE_CLASS for side in spec.sides}, grid
            ),
        }

    return grade
