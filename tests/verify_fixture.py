"""Compare this code with reference numbers: ``python tests/verify_fixture.py FILE.npz``.

The file holds the weights, inputs and outputs of third-party PyTorch code and its configuration;
``INDEX.tsv`` beside it states the tolerance of every output. The model is rebuilt from the stored
configuration and weights, so files of other sizes and class counts work the same way. Prints the
largest error of each part and exits with 0 (all equal) or 1. What is not built yet is named.
"""

import csv
import json
import pathlib
import sys
from collections.abc import Callable

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import fixture_cts  # noqa: E402
import fixture_parts  # noqa: E402
import fixture_policy  # noqa: E402
import fixture_segmenter  # noqa: E402
import fixture_svit  # noqa: E402
import jax  # noqa: E402

GOLDEN_INDEX = pathlib.Path(__file__).parent / "golden" / "INDEX.tsv"
SCORE_GAP = 1e-4  # argmax maps may differ where the two best scores are closer than this


def main(argv: list[str]) -> int:
    if len(argv) != 2:
        print("usage: python tests/verify_fixture.py FILE.npz", file=sys.stderr)
        return 2
    jax.config.update("jax_default_matmul_precision", "highest")
    return 0 if verify(pathlib.Path(argv[1])) else 1


def verify(path: pathlib.Path, show: Callable[[str], None] = print) -> bool:
    """Check every output of the file; True if all that is built agrees."""
    data = load(path)
    check = Check(data, tolerances(path), show)
    part = next((f for name, f in PARTS.items() if path.name.startswith(name)), None)
    if part is None:
        show(f"SKIPPED: {path.name}: not built yet: {len(check.outputs)} outputs")
        return True
    part(data, check)
    return check.finish()


PARTS = {
    "F1": fixture_parts.vit_backbone,
    "F2": fixture_parts.dtop,
    "F3": fixture_parts.segvit,
    "F4": fixture_segmenter.all_heads,
    "F5": fixture_parts.timm_vit,
    "F6": fixture_svit.svit_parts,
    "F7": fixture_cts.sharing,
    "F8": fixture_parts.metrics,
    "F9": fixture_policy.efficientnet,
}


def load(path: pathlib.Path) -> dict[str, np.ndarray]:
    """All arrays; floats as float32 (float64 stays), and "config" as a dict."""
    with np.load(path, allow_pickle=False) as file:
        data = {name: file[name] for name in file.files}
    data = {n: v.astype(np.float32) if v.dtype == np.float16 else v for n, v in data.items()}
    data["config"] = json.loads(str(data.pop("meta/config_json")))
    return data


def tolerances(path: pathlib.Path) -> dict[str, str]:
    """Output name -> absolute tolerance, or "exact", as INDEX.tsv says for this file.

    A file that the index does not name gets the tolerances of its family (F1, F2, ...); where there
    is no index beside the file, that of the golden files serves.
    """
    index = path.parent / "INDEX.tsv"
    with open(index if index.exists() else GOLDEN_INDEX, newline="") as file:
        rows = [row for row in csv.reader(file, delimiter="\t") if len(row) >= 7]
    own = {key: tolerance for name, key, *_, tolerance in rows if name == path.stem}
    family = {key: tolerance for name, key, *_, tolerance in rows if name[:2] == path.name[:2]}
    return own or family


class Check:
    """Collects comparisons; an output that is neither compared nor skipped is a failure."""

    def __init__(self, data: dict, tolerance: dict[str, str], show: Callable[[str], None]):
        self.data, self.tolerance, self.show = data, tolerance, show
        self.outputs = {name for name in data if name.startswith("out/")}
        self.done, self.failed, self.worst = set(), [], {}

    def equal(self, name: str, ours, scores=None) -> None:
        """Compare with ``out/<name>``; nothing to do where the file does not hold it.

        ``scores`` [..., K] excuses near ties of an argmax map.
        """
        name = f"out/{name}"
        if name not in self.outputs:
            return
        theirs, ours = self.data[name], np.asarray(ours)
        self.done.add(name)
        part = name.split("/")[1]
        if ours.size == theirs.size == 1:  # a number is () here and (1,) there
            ours = ours.reshape(theirs.shape)
        if ours.shape != theirs.shape:
            self.failed.append(f"{name}: shape {ours.shape} instead of {theirs.shape}")
            return
        stated = self.tolerance.get(name, "exact" if theirs.dtype.kind in "biu" else "")
        if stated.startswith("exact"):
            differ = ours != theirs
            if "near ties" in stated and scores is not None:
                best = np.sort(np.asarray(scores), axis=-1)
                differ &= (best[..., -1] - best[..., -2]).reshape(differ.shape) >= SCORE_GAP
            error, limit = float(differ.sum()), 0.0
        else:
            limit = float(stated) if stated and "n/a" not in stated else self._widest()
            gap = np.abs(ours.astype(np.float64) - theirs)
            gap = np.where(np.isnan(ours) & np.isnan(theirs), 0.0, gap)
            error = float(gap.max(initial=0.0)) if not np.isnan(gap).any() else float("inf")
        if error > limit:
            self.failed.append(f"{name}: error {error:.3g}, allowed {limit:.3g}")
        worst = self.worst.get(part, (0.0, 0.0, ""))
        if error / max(limit, 1e-30) >= worst[0]:
            self.worst[part] = (error / max(limit, 1e-30), error, name)

    def given(self, name: str) -> np.ndarray:
        """``out/<name>`` as a description of other outputs, with nothing to compare; or empty."""
        self.done |= {f"out/{name}"} & self.outputs
        return self.data.get(f"out/{name}", np.zeros(0))

    def skip(self, prefix: str, why: str) -> None:
        """Name all outputs below ``out/<prefix>`` as skipped."""
        names = {n for n in self.outputs if n.startswith(f"out/{prefix}")} - self.done
        self.done |= names
        if names:
            self.show(f"SKIPPED: out/{prefix}* ({len(names)} outputs): {why}")

    def finish(self) -> bool:
        for part, (_, error, name) in sorted(self.worst.items()):
            self.show(f"{part}: largest error {error:.3g} at {name}")
        forgotten = sorted(self.outputs - self.done)
        self.failed += [f"{name}: not compared" for name in forgotten]
        for line in self.failed:
            self.show(f"FAILED: {line}")
        verdict = "FAILED" if self.failed else "OK"
        self.show(f"{verdict}: {len(self.done)} of {len(self.outputs)} outputs accounted for")
        return not self.failed

    def _widest(self) -> float:
        numbers = [t for t in self.tolerance.values() if t and t[0].isdigit()]
        return max(map(float, numbers), default=0.0)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
