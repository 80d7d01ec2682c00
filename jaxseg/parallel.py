"""Data parallelism. The only file that says pmap.

State is a pytree whose leaves carry a leading axis of local devices, all replicas equal; batches
carry the same axis, all parts different. The un-stacked form that newer jax allows is faster by
little and fails with donated state in several processes.
"""

import pickle
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxseg.errors import UserError

AXIS = "batch"


def pmap_step(step_fn: Callable) -> Callable:
    """Run ``step(state, batch, key) -> (state, metrics)`` on every local device at once.

    Inside, collectives use `AXIS`; whatever leaves must have gone through pmean or psum, because
    only the first replica is ever read. ``key`` is one key for all devices. The given state is
    donated: it must not be read again.
    """
    return jax.pmap(step_fn, axis_name=AXIS, in_axes=(0, 0, None), donate_argnums=0)


def step_key(key: jax.Array, step: jax.Array) -> jax.Array:
    """Inside a step: a key of its own for this step and this device, over all processes."""
    return jax.random.fold_in(jax.random.fold_in(key, step), jax.lax.axis_index(AXIS))


def replicate(host_state):
    """Copy a pytree of arrays to every local device: [...] becomes [devices, ...]."""
    count = jax.local_device_count()
    return _put(
        jax.tree.map(lambda x: np.broadcast_to(np.asarray(x), (count, *np.shape(x))), host_state)
    )


def unreplicate(state):
    """The first replica of a replicated pytree (state or metrics) as numpy arrays of its own."""
    first = jax.tree.map(lambda x: x.addressable_shards[0].data, state)
    return jax.tree.map(lambda x: np.array(x[0]), jax.device_get(first))


def shard(batch):
    """Split this process's batch over its devices: [B, ...] -> [devices, B / devices, ...].

    Raises UserError if B is not a multiple of the number of local devices.
    """
    count = jax.local_device_count()

    def split(x):
        if len(x) % count:
            raise UserError(
                f"a batch of {len(x)} images cannot be split over {count} devices; "
                f"make the batch size a multiple of {count}"
            )
        return x.reshape(count, len(x) // count, *x.shape[1:])

    return _put(jax.tree.map(split, batch))


def gather(value) -> list:
    """``value`` of every process, in their order. All processes must call it at the same point.

    Whatever pickle carries: it comes from this program's own processes.
    """
    if jax.process_count() == 1:
        return [value]
    data = np.frombuffer(pickle.dumps(value), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(len(data)))
    room = 1 << int(sizes.max() - 1).bit_length()  # few shapes: each is compiled once
    rows = multihost_utils.process_allgather(np.pad(data, (0, room - len(data))))
    return [pickle.loads(row[:size]) for row, size in zip(rows, sizes, strict=True)]


def require_same(value, what: str) -> None:
    """Raises UserError in all processes unless ``value`` is the same in all."""
    found = gather(value)
    others = [str(i) for i, other in enumerate(found) if other != found[0]]
    if others:
        raise UserError(
            f"process {', '.join(others)} has another {what} than process 0; give all the same"
        )


def _put(tree):
    # The very sharding that pmap gives its outputs: with any other the second step, which gets
    # the first one's output, would be compiled again.
    mesh = jax.sharding.Mesh(np.array(jax.local_devices()), (AXIS,))
    return jax.device_put(tree, jax.NamedSharding(mesh, jax.P(AXIS)))
