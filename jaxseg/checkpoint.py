"""Checkpoints of a training state that survive kills and notice damage. The only orbax importer.

Orbax writes each step (asynchronously, into a temporary folder that is renamed when complete).
What it leaves open is done here instead of in its CheckpointManager: that one deletes the newest
step when it keeps the best, takes NaN for the best metric, refuses to save again after a fall back
to an older step, can leave a half deleted step in its list, and nothing in it notices flipped bits.

A directory holds ``step_00000300/`` and so on, ``damaged_step_...`` (kept for a human to look at)
and, during a save, temporary folders, which the next start removes.
"""

import math
import os
import pathlib
import re
import shutil
from collections.abc import Callable

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from jaxseg.errors import UserError
from jaxseg.weights import check_same, digest

TRASH = ".deleted_"


class _Damaged(Exception):
    """A step cannot be read, or is not what was saved."""


class Checkpoints:
    """The checkpoints of one run: the newest ``keep`` steps and the one with the best metric.

    A state is any pytree of non-empty numpy arrays and numbers (`parallel.unreplicate` gives
    one). It is stored as a flat dict of names, so that classes may move between modules.
    With several processes the first one writes, and all read the same shared directory.
    Use it as a context manager, or `close` it: a save may still be running.
    """

    def __init__(self, directory: str | os.PathLike, keep: int = 2):
        self._directory = pathlib.Path(directory).absolute()
        self._keep = keep
        self._primary = jax.process_index() == 0
        self._saving = None  # the step that orbax may still be writing
        self._metrics = {}  # of the steps that were asked for: orbax needs 0.1 s to look one up
        self._directory.mkdir(parents=True, exist_ok=True)
        if self._primary:
            for path in self._directory.iterdir():
                if path.name.startswith(TRASH) or ".orbax-checkpoint-tmp" in path.name:
                    shutil.rmtree(path)
        alone = ocp.options.MultiprocessingOptions(
            primary_host=jax.process_index(),
            active_processes={jax.process_index()},
            barrier_sync_key_prefix=f"process_{jax.process_index()}",
        )
        self._orbax = ocp.AsyncCheckpointer(
            ocp.PyTreeCheckpointHandler(multiprocessing_options=alone),
            multiprocessing_options=alone,
        )

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def save(self, step: int, state, metric: float | None = None) -> None:
        """Start to save ``state``; its arrays must not be changed before `wait` or the next save.

        ``metric``: larger is better; None or a non-finite number never becomes the best. A step
        that exists already, from a run that went on from an older one, is replaced.
        Raises UserError if the disk is too full or the previous save has failed.
        """
        if metric is not None:
            metric = float(metric) if math.isfinite(metric) else None
        self._metrics[step] = metric
        if not self._primary:
            return
        self.wait()
        arrays = {name: np.asarray(leaf) for name, leaf in _flatten(state)[0].items()}
        self._check_space(sum(array.nbytes for array in arrays.values()))
        record = {"step": step, "metric": metric}
        record["sha256"] = digest(arrays, record)
        if self._path(step).exists():
            self._delete(step)
        self._saving = step
        self._orbax.save(self._path(step), ocp.args.PyTreeSave(arrays), custom_metadata=record)

    def wait(self) -> None:
        """Until the save is complete; then drop the steps that need not be kept.

        Raises UserError if the save has failed.
        """
        if self._saving is None:
            return
        step, self._saving = self._saving, None
        try:
            self._orbax.wait_until_finished()
        except Exception as error:
            raise UserError(
                f"{self._path(step)}: could not be saved ({_brief(error)}); "
                f"check the disk, then resume from the step before"
            ) from error
        steps = self.steps()
        for old in set(steps) - set(steps[-self._keep :]) - {self.best()}:
            self._delete(old)

    def close(self) -> None:
        """Finish a running save and release orbax's threads."""
        try:
            self.wait()
        finally:
            self._orbax.close()

    def steps(self) -> list[int]:
        """All complete steps, ascending; their content has not been verified."""
        names = [path.name for path in self._directory.iterdir()]
        found = [re.fullmatch(r"step_(\d{8,})", name) for name in names]
        return sorted(int(match[1]) for match in found if match)

    def latest(self) -> int | None:
        """The newest step, or None."""
        return max(self.steps(), default=None)

    def best(self) -> int | None:
        """The step with the largest metric (of equals the newest), or None if none has one."""
        metrics = {step: self._metric(step) for step in self.steps()}
        scored = [(metric, step) for step, metric in metrics.items() if metric is not None]
        return max(scored)[1] if scored else None

    def restore(self, template, step: int | None = None) -> tuple[int, object]:
        """The newest intact step, or exactly ``step``, as (step, state of numpy arrays).

        ``template`` gives structure, shapes and dtypes; its values are not read. A damaged step is
        renamed and reported in one line. Raises UserError if nothing intact is there, and if the
        state does not have the template's names, shapes and dtypes.
        """
        self.wait()
        found, arrays = self._on_primary(lambda: self._intact(step))
        if found is None:
            what = (
                "no intact checkpoint" if step is None else f"no intact checkpoint of step {step}"
            )
            raise UserError(f"{self._directory}: {what}; intact or unchecked: {self.steps()}")
        if arrays is None:
            arrays = self._read(found)
        names, structure = _flatten(template)
        _check_fits(arrays, names, str(self._path(found)))
        return found, jax.tree.unflatten(structure, [arrays[name] for name in names])

    def _intact(self, step: int | None) -> tuple[int | None, dict[str, np.ndarray] | None]:
        """The first step that reads well, newest first; damaged ones are put aside."""
        for candidate in [s for s in reversed(self.steps()) if step in (None, s)]:
            try:
                return candidate, self._read(candidate)
            except _Damaged as damage:
                aside = self._free_name(f"damaged_{self._path(candidate).name}")
                self._path(candidate).rename(aside)
                print(f"checkpoint of step {candidate} is damaged ({damage}): now {aside}")
        return None, None

    def _read(self, step: int) -> dict[str, np.ndarray]:
        try:
            arrays = self._orbax.restore(self._path(step), ocp.args.PyTreeRestore())
            record = dict(self._orbax.metadata(self._path(step)).custom_metadata)
            expected = record.pop("sha256")
            intact = expected == digest(arrays, record)
        except (PermissionError, MemoryError):
            raise  # says nothing about the files
        except Exception as error:  # orbax and tensorstore raise many kinds, and plain Exception
            raise _Damaged(_brief(error)) from error
        if not intact:
            raise _Damaged("its content differs from its sha256")
        return arrays

    def _metric(self, step: int) -> float | None:
        if step not in self._metrics:
            try:
                record = self._orbax.metadata(self._path(step)).custom_metadata
                self._metrics[step] = record["metric"]
            except Exception:  # damaged: `restore` will say so when it is this step's turn
                self._metrics[step] = None
        return self._metrics[step]

    def _on_primary(self, find: Callable) -> tuple[int | None, dict[str, np.ndarray] | None]:
        """Let one process decide which step to use: the others would race with its renaming."""
        found, arrays = find() if self._primary else (None, None)
        if jax.process_count() > 1:
            number = np.int32(-1 if found is None else found)
            number = int(multihost_utils.broadcast_one_to_all(number))
            found = None if number < 0 else number
        return found, arrays

    def _check_space(self, size: int) -> None:
        free = shutil.disk_usage(self._directory).free
        if free < 2 * size:  # what tensorstore needs at most while it writes
            raise UserError(
                f"{self._directory}: {free / 1e9:.2f} GB free, saving a checkpoint needs "
                f"{2 * size / 1e9:.2f} GB; make room and resume"
            )

    def _path(self, step: int) -> pathlib.Path:
        return self._directory / f"step_{step:08d}"

    def _free_name(self, name: str) -> pathlib.Path:
        path, count = self._directory / name, 1
        while path.exists():
            count += 1
            path = self._directory / f"{name}_{count}"
        return path

    def _delete(self, step: int) -> None:
        """Rename first: a kill in between must not leave half a step that looks complete."""
        trash = self._free_name(f"{TRASH}{self._path(step).name}")
        shutil.rmtree(self._path(step).rename(trash))


def _flatten(tree) -> tuple[dict[str, object], object]:
    leaves, structure = jax.tree.flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves
    }, structure


def _check_fits(arrays: dict[str, np.ndarray], template: dict[str, object], origin: str) -> None:
    check_same(arrays, {name: np.shape(leaf) for name, leaf in template.items()}, origin)
    for name, leaf in template.items():
        wanted = leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype
        if arrays[name].dtype != wanted:
            raise UserError(
                f"{origin}: {name} is {arrays[name].dtype} instead of {wanted}; "
                f"use the config it was made with"
            )


def _brief(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:100]}"
