"""Several processes of one command: the flags for it, how they start and how they end."""

import contextlib
import os
import traceback
from collections.abc import Iterator

from absl import flags

from jaxseg.errors import UserError
from jaxseg.peers import Bond, meet

# Seconds without a sign after which jax gives a process up and aborts all others: jax's default.
# Deaths are noticed at once (`jaxseg.peers`), so this is for machines and networks that fall
# silent. A shorter time would save little and would end runs whose machine pauses for a while.
HEARTBEAT = 100


class Stopped(UserError):
    """Raised by all processes at the same point: they end in the usual way."""


def define_flags() -> None:
    """--coordinator, --num_processes, --process_id: the arguments of `joined`."""
    flags.DEFINE_string(
        "coordinator",
        None,
        "To be one of several processes: HOST:PORT of process 0, where PORT and PORT + 1 must be "
        "free; or 'auto' under a launcher that jax knows (SLURM, Open MPI, Cloud TPU, Kubernetes).",
    )
    flags.DEFINE_integer("num_processes", None, "Processes in all; not with auto.")
    flags.DEFINE_integer("process_id", None, "Number of this process, from 0; not with auto.")


@contextlib.contextmanager
def joined(coordinator: str | None, count: int | None, index: int | None) -> Iterator[None]:
    """Inside, jax computes with the devices of all processes, and these end together.

    Enter it before anything else touches jax. None for all: alone. Of several processes only
    process 0 writes to standard output, and no exception but `Stopped` leaves: the process ends
    with one line on standard error and code 2. With HOST:PORT all others do so too, also when one
    is killed; with "auto" that is the launcher's business.
    Raises UserError: flags that do not fit, processes that do not come.
    """
    if coordinator in (None, "auto") and (count, index) != (None, None):
        raise UserError("--num_processes and --process_id go with --coordinator=HOST:PORT")
    if coordinator is None:
        yield
        return
    import jax

    if coordinator == "auto":
        _initialise()
        bond = Bond([], jax.process_index())
    else:
        host, port = _address(coordinator)
        if count is None or index is None or not 0 <= index < count:
            raise UserError(
                f"--num_processes={count} --process_id={index}: give both, numbers from 0 to "
                f"num_processes - 1"
            )
        bond = Bond(meet(host, port, count, index), index)
    try:
        if coordinator != "auto":
            # "deactivate": or SLURM's variables would take away all devices but one.
            how = {"cluster_detection_method": "deactivate"}
            _initialise(f"{host}:{port + 1}", count, index, **how)
        if jax.process_index():
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        yield
        bond.release()
    except Stopped:
        bond.release()
        raise
    except KeyboardInterrupt:
        bond.fail("interrupted")
    except BaseException as error:
        known = isinstance(error, UserError)
        if not known or os.environ.get("JAXSEG_TRACEBACK"):
            traceback.print_exc()
        bond.fail(str(error) if known else f"{type(error).__name__}: {error}")


def _initialise(*args, **kwargs) -> None:
    import jax

    try:
        jax.distributed.initialize(*args, heartbeat_timeout_seconds=HEARTBEAT, **kwargs)
    except (ValueError, RuntimeError, OSError) as error:
        raise UserError(
            f"--coordinator: jax cannot start ({error}); name --coordinator=HOST:PORT of process "
            f"0, --num_processes and --process_id"
        ) from error


def _address(coordinator: str) -> tuple[str, int]:
    host, _, port = coordinator.rpartition(":")
    if not host or not (port.isascii() and port.isdigit()) or not 0 < int(port) < 65535:
        raise UserError(f"--coordinator={coordinator}: give HOST:PORT, PORT below 65535, or auto")
    return host, int(port)
