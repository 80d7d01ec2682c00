"""What may differ between the start of a run and a later start that goes on with it.

Whatever is not named in `MAY_CHANGE` is refused: it shapes the arrays (model, method, task), the
course of training that a resumed run promises to repeat bit for bit (seed, optim, train.batch_size,
data.*), or what the best checkpoint is the best of (data.val). docs/reliability.md has the table.
"""

import hashlib
import json
from collections.abc import Mapping

from jaxseg.data.classes import Source
from jaxseg.data.classification import ClassFolder
from jaxseg.data.folder import Folder
from jaxseg.errors import UserError

_START = "read by a fresh start only"
_BEST = "the best checkpoint is chosen among scores of both settings"
_FROM_HERE = "another course than that of an uninterrupted run"
# Field, or group of fields -> what the user should know when it differs; "" = no effect on weights.
MAY_CHANGE = {
    "resume": "",
    "init_from": _START,  # the file may have moved; it is looked for, but not used
    "data.root": "",  # data sets move; `data_record` notices another one
    "data.test": "",
    "data.workers": "",  # the batch of a step does not depend on it
    "method.policy": _START,
    "optim.lr": _FROM_HERE,  # with clip_norm the mend of a run that diverges
    "optim.clip_norm": _FROM_HERE,  # but not on or off: `_switched`
    "optim.schedule_steps": "",  # said by the effective length, see `_schedule`
    "train.steps": "",  # the same
    "train.log_every": "",
    "train.eval_every": _BEST,
    "train.checkpoint_every": "",
    "train.max_bad_steps": "",
    "eval": _BEST,
}
_LISTED = 4


def data_record(train: Source, val: Source) -> dict:
    """What is kept of the data, as JSON: class names, and per split the number of images.

    Folders also get a sha256 of their image names; prepared data sets have fixed contents.
    """
    return {
        "classes": list(train.classes.names),
        "train": _split_record(train),
        "val": _split_record(val),
    }


def _split_record(source: Source) -> dict:
    record = {"images": len(source)}
    names = None
    if isinstance(source, Folder):
        names = [name for name, *_ in source.files]
    elif isinstance(source, ClassFolder):
        names = source.files
    if names is not None:
        record["sha256_of_names"] = hashlib.sha256(json.dumps(names).encode()).hexdigest()
    return record


def compare(
    workdir: str, stored: Mapping, config: Mapping, before: Mapping | None, data: Mapping, done: int
) -> list[str]:
    """Lines "changed: field old -> new" for what differs from the last start.

    ``stored`` and ``config``: nested configurations; ``before`` and ``data``: records of
    `data_record` (None: made before there were any); ``done``: steps that are finished.
    Raises UserError for what may not differ, naming field, both values and the mend.
    """
    if before is not None:
        if not _is_data_record(before):
            raise UserError(
                f"{workdir}/run.json: damaged, it does not say which data the run was trained on; "
                f"put it back (the last line of starts.jsonl has the same content) or name another "
                f"--workdir"
            )
        _check_data(workdir, before, data)
    old, new = dict(_flat(stored)), dict(_flat(config))
    different = [name for name in new if name in old and old[name] != new[name]]
    refused = [n for n in different if _remark(n) is None or _switched(n, old[n], new[n])]
    if refused:
        listed = ", ".join(f"{n} was {old[n]!r} and is {new[n]!r}" for n in refused[:_LISTED])
        more = f", and {len(refused) - _LISTED} more" if len(refused) > _LISTED else ""
        raise UserError(
            f"{workdir}: cannot go on, config.{listed}{more}; set "
            f"{'it' if len(refused) == 1 else 'them'} back, or name another --workdir"
        )
    if new["train.steps"] < done:
        raise UserError(
            f"{workdir}: config.train.steps={new['train.steps']}, but {done} steps are done; "
            f"ask for {done} or more, or name another --workdir"
        )
    lines = [_line(name, old[name], new[name], _remark(name)) for name in different]
    if _schedule(old) != _schedule(new):
        lines.append(_line("learning-rate schedule", _schedule(old), _schedule(new), _FROM_HERE))
    return [line for line in lines if not line.startswith("changed: resume ")]


def _line(name: str, old, new, remark: str) -> str:
    return f"changed: {name} {old!r} -> {new!r}" + (f" ({remark})" if remark else "")


def _remark(name: str) -> str | None:
    group = name.partition(".")[0]
    return MAY_CHANGE.get(name, MAY_CHANGE.get(group) if group == "eval" else None)


def _switched(name: str, old, new) -> bool:
    """Clipping is a part of the optimizer's state: one without it does not fit one with it."""
    return name == "optim.clip_norm" and bool(old) != bool(new)


def _schedule(flat: Mapping) -> int:
    """Its length in steps."""
    return flat["optim.schedule_steps"] or flat["train.steps"]


def _flat(config: Mapping, prefix: str = ""):
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _is_data_record(stored: object) -> bool:
    """Whether it has the form of what `data_record` makes."""
    if not isinstance(stored, dict):
        return False
    names, splits = stored.get("classes"), [stored.get("train"), stored.get("val")]
    return (
        isinstance(names, list)
        and all(isinstance(name, str) for name in names)
        and all(isinstance(split, dict) and "images" in split for split in splits)
    )


def _check_data(workdir: str, before: Mapping, data: Mapping) -> None:
    mend = "use the data it was trained on, or name another --workdir"
    was, now = before["classes"], data["classes"]
    if was != now:
        first = next(i for i in range(len(was) + 1) if was[i : i + 1] != now[i : i + 1])
        raise UserError(
            f"{workdir}: cannot go on with other classes: {len(was)} before, {len(now)} now, the "
            f"first that differs is number {first} ({', '.join(was[first:][:1]) or 'none'} "
            f"before, {', '.join(now[first:][:1]) or 'none'} now); {mend}"
        )
    for split in ("train", "val"):
        if before[split]["images"] != data[split]["images"]:
            raise UserError(
                f"{workdir}: cannot go on with other data: config.data.{split} selected "
                f"{before[split]['images']} images before and {data[split]['images']} now; {mend}"
            )
        if before[split] != data[split]:
            raise UserError(
                f"{workdir}: cannot go on with other data: config.data.{split} selects as many "
                f"images as before, but others (their names differ); {mend}"
            )
