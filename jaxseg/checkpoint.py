"""Checkpoints of a training state that survive kills and notice damage. The only orbax importer.

Orbax only writes and reads arrays here. Its CheckpointManager is not used because it deletes the
newest step when told to keep the best, takes NaN for the best metric, refuses to save after a fall
back to an older step, and lists half deleted steps; nothing in orbax notices every flipped bit.

A directory holds ``step_00000300/`` and so on, each with orbax's files and a manifest of their
sha256, and ``damaged_step_.../`` for a human to look at. Whatever happens to a step happens to a
folder of another name first: a folder is called step_... exactly while it is complete.
"""

import concurrent.futures
import hashlib
import json
import math
import os
import pathlib
import re
import secrets
import shutil
from typing import NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxseg.errors import UserError
from jaxseg.parallel import gather
from jaxseg.weights import check_same, digest

MANIFEST = "manifest.json"
SAVING, DELETED = ".saving_", ".deleted_"  # what a kill may leave behind


class _Damaged(Exception):
    """A step is not what was saved."""


class Health(NamedTuple):
    """One step as `inspect` found it. ``damage``: what is wrong with it, "" if intact."""

    step: int
    metric: float | None
    damage: str


def inspect(directory: str | os.PathLike) -> list[Health]:
    """The health of all steps, ascending; reads every byte, changes nothing.

    Steps that a running training deletes meanwhile are left out.
    """
    found = []
    for step, folder in sorted(_complete(pathlib.Path(directory)).items()):
        metric, damage = None, ""
        try:
            metric = _manifest(folder)["metric"]
            _verify(folder)
        except _Damaged as error:
            damage = str(error)
        if folder.exists():
            found.append(Health(step, metric, damage))
    return found


class Checkpoints:
    """The checkpoints of one run: the newest ``keep`` steps and the one with the best metric.

    A state is any pytree of non-empty numpy arrays and numbers (`parallel.unreplicate` gives
    one). It is stored as a flat dict of names, so that classes may move between modules.
    With several processes the first one writes and answers, and all read the same shared directory;
    making one, `wait`, `latest`, `best` and `restore` are for all of them at the same point.
    Use it as a context manager, or `close` it: saving goes on in the background.
    Raises UserError: processes that do not see the same directory.
    """

    def __init__(self, directory: str | os.PathLike, keep: int = 2):
        self._directory = pathlib.Path(directory).absolute()
        self._directory.mkdir(parents=True, exist_ok=True)
        self._keep = keep
        self._primary = jax.process_index() == 0
        if self._primary:
            for path in self._directory.iterdir():
                if path.name.startswith((SAVING, DELETED)):
                    shutil.rmtree(path)
        self._check_shared()
        alone = ocp.options.MultiprocessingOptions(
            primary_host=jax.process_index(),
            active_processes={jax.process_index()},
            barrier_sync_key_prefix=f"process_{jax.process_index()}",
        )
        self._orbax = ocp.Checkpointer(
            ocp.PyTreeCheckpointHandler(multiprocessing_options=alone),
            multiprocessing_options=alone,
        )
        self._thread = concurrent.futures.ThreadPoolExecutor(max_workers=1)
        self._running = None  # (step, future) of a save that was not waited for

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
        if not self._primary:
            return
        self._finish()
        arrays = {name: np.asarray(leaf) for name, leaf in _flatten(state)[0].items()}
        self._check_space(sum(array.nbytes for array in arrays.values()))
        if metric is not None:
            metric = float(metric) if math.isfinite(metric) else None
        self._running = step, self._thread.submit(self._write, step, arrays, metric)

    def wait(self) -> None:
        """Until the save is complete, for all processes. Raises UserError if it has failed."""
        self._finish()
        gather(None)

    def close(self) -> None:
        """Finish a running save and release the threads."""
        try:
            self._finish()  # no waiting for other processes: this one may be leaving on an error
        finally:
            self._thread.shutdown()
            self._orbax.close()

    def steps(self) -> list[int]:
        """All complete steps, ascending; their content has not been verified."""
        return sorted(_complete(self._directory))

    def latest(self) -> int | None:
        """The newest step, or None."""
        return gather(max(self.steps(), default=None))[0]

    def best(self) -> int | None:
        """The step with the largest metric (of equals the newest), or None if none has one."""
        return gather(self._best())[0]

    def _best(self) -> int | None:
        scored = []
        for step in self.steps():
            try:
                metric = _manifest(self._path(step))["metric"]
            except _Damaged:
                continue  # `restore` will say so when it is this step's turn
            if metric is not None:
                scored.append((metric, step))
        return max(scored)[1] if scored else None

    def restore(self, template, step: int | None = None) -> tuple[int, object]:
        """The newest intact step, or exactly ``step``, as (step, state of numpy arrays).

        ``template`` gives structure, shapes and dtypes; its values are not read. A damaged step is
        renamed and reported in one line. Raises UserError if nothing intact is there, and if the
        state does not have the template's names, shapes and dtypes.
        """
        self._finish()
        # One process decides: the others would race with its renaming.
        found = gather(self._newest_intact(step) if self._primary else None)[0]
        if found is None:
            what = "" if step is None else f" of step {step}"
            mend = "go on from these with --config.resume=True" if self.steps() else "start anew"
            raise UserError(
                f"{self._directory}: no intact checkpoint{what}; there are steps {self.steps()}: "
                f"{mend}"
            )
        try:
            arrays = self._orbax.restore(self._path(found), ocp.args.PyTreeRestore())
            arrays = {name: np.asarray(value) for name, value in arrays.items()}
        except Exception as error:  # digests are right, so it was never what orbax writes
            reason = f"{type(error).__name__}: {str(error)[:200]}"
            raise UserError(
                f"{self._path(found)}: cannot be read ({reason}); remove this folder to go on from "
                f"the step before"
            ) from error
        names, structure = _flatten(template)
        _check_fits(arrays, names, str(self._path(found)))
        return found, jax.tree.unflatten(structure, [arrays[name] for name in names])

    def _finish(self) -> None:
        if self._running is None:
            return
        (step, future), self._running = self._running, None
        try:
            future.result()
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"{self._path(step)}: could not be saved ({reason[:200]}); "
                f"check the disk, then resume from the step before"
            ) from error

    def _write(self, step: int, arrays: dict[str, np.ndarray], metric: float | None) -> None:
        """In the background: save, make it count, drop the steps that need not be kept."""
        folder = self._free_name(f"{SAVING}{step}")
        try:
            self._fill(folder, step, arrays, metric)
        except BaseException:  # what is there would keep a full disk full
            for path in self._directory.glob(f"{folder.name}*"):  # also under orbax's own name
                shutil.rmtree(path, ignore_errors=True)
            raise
        if self._path(step).exists():
            self._delete(step)
        folder.rename(self._path(step))
        steps = self.steps()
        for old in set(steps) - set(steps[-self._keep :]) - {self._best()}:
            self._delete(old)

    def _fill(
        self, folder: pathlib.Path, step: int, arrays: dict[str, np.ndarray], metric: float | None
    ) -> None:
        """A whole step with its manifest, under the name ``folder``."""
        self._orbax.save(folder, ocp.args.PyTreeSave(arrays))
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        hashes = {str(path.relative_to(folder)): _sha256(path) for path in files}
        content = {"step": step, "metric": metric, "files": hashes}
        (folder / MANIFEST).write_text(json.dumps(content | {"sha256": digest({}, content)}))

    def _newest_intact(self, step: int | None) -> int | None:
        for candidate in reversed(self.steps()):
            if step not in (None, candidate):
                continue
            try:
                _verify(self._path(candidate))
                return candidate
            except _Damaged as damage:
                aside = self._free_name(f"damaged_{self._path(candidate).name}")
                self._path(candidate).rename(aside)
                print(f"checkpoint of step {candidate} is damaged ({damage}): now {aside}")
        return None

    def _check_shared(self) -> None:
        if jax.process_count() == 1:
            return
        # A name that no machine has looked for yet: a network file system may remember answers.
        probe = self._directory / f"{DELETED}{gather(secrets.token_hex(8))[0]}"
        if self._primary:
            probe.mkdir()
        gather(None)
        seen = gather(probe.exists())
        if self._primary:
            probe.rmdir()
        blind = [str(i) for i, sees in enumerate(seen) if not sees]
        if blind:
            raise UserError(
                f"{self._directory}: process {', '.join(blind)} does not see what process 0 writes "
                f"there; name a --workdir on a file system that all machines share"
            )

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
        trash = self._free_name(f"{DELETED}{step}")
        shutil.rmtree(self._path(step).rename(trash))


def _complete(directory: pathlib.Path) -> dict[int, pathlib.Path]:
    """Step -> folder of all complete steps; their content has not been verified."""
    matches = {path: re.fullmatch(r"step_(\d{8,})", path.name) for path in directory.iterdir()}
    return {int(match[1]): path for path, match in matches.items() if match}


def _verify(folder: pathlib.Path) -> None:
    """Raise `_Damaged` unless all files are what the manifest says."""
    for name, expected in _manifest(folder)["files"].items():
        try:
            intact = _sha256(folder / name) == expected
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise _Damaged(f"{name} is missing") from None
        if not intact:
            raise _Damaged(f"{name} differs from its sha256")


def _manifest(folder: pathlib.Path) -> dict:
    try:
        content = json.loads((folder / MANIFEST).read_bytes())
        intact = content.pop("sha256") == digest({}, content) and _is_manifest(content)
    except (FileNotFoundError, NotADirectoryError):
        raise _Damaged(f"{MANIFEST} is missing") from None
    # not JSON, or not a manifest
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        intact = False
    if not intact:
        raise _Damaged(f"{MANIFEST} differs from its sha256")
    return content


def _is_manifest(content: dict) -> bool:
    """Whether it has the form of what `Checkpoints` writes; the digest of another may be right."""
    metric, files = content["metric"], content["files"]
    scored = type(metric) is float and math.isfinite(metric)
    if not isinstance(files, dict) or not (metric is None or scored):
        return False
    return all(
        name.isprintable() and len(name) <= 200 and not {"", "..", "."} & set(name.split("/"))
        for name in files
    )


def _flatten(tree) -> tuple[dict[str, object], object]:
    leaves, structure = jax.tree.flatten_with_path(tree)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    return dict(zip(names, (leaf for _, leaf in leaves), strict=True)), structure


def _check_fits(arrays: dict[str, np.ndarray], template: dict[str, object], origin: str) -> None:
    check_same(arrays, {name: np.shape(leaf) for name, leaf in template.items()}, origin)
    for name, leaf in template.items():
        wanted = leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype
        if arrays[name].dtype != wanted:
            raise UserError(
                f"{origin}: {name} is {arrays[name].dtype} instead of {wanted}; "
                f"use the config it was made with"
            )


def _sha256(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
