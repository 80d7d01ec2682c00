"""One training step, and the loop around it. No config, no data format, no file names in here."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxseg.errors import UserError
from jaxseg.models.network import TEACHER, Arrays, Network, stats_of
from jaxseg.parallel import AXIS, pmap_step, replicate, shard, step_key, unreplicate

State = dict  # step, params, stats, opt, ema, bad_steps, skipped_steps: arrays and dicts of arrays


@dataclass(frozen=True)
class TrainSpec:
    """What one step does and how long the loop runs; steps are optimizer steps.

    accumulate: micro-batches per step. ema: decay of the averaged weights, 0 = none.
    max_bad_steps: non-finite steps in a row (each is skipped) after which training stops.
    """

    seed: int
    steps: int
    accumulate: int
    ema: float
    bfloat16: bool
    log_every: int
    eval_every: int
    checkpoint_every: int
    max_bad_steps: int


def initial_state(
    params: Arrays,
    stats: Arrays,
    optimizer: optax.GradientTransformation,
    trained: Sequence[str],
    spec: TrainSpec,
) -> State:
    """Step 0 on the host: numpy leaves, not yet replicated. ``optimizer`` is for ``trained``."""
    state = {
        "step": jnp.zeros((), jnp.int32),
        "params": params,
        "stats": stats,
        "opt": optimizer.init({name: params[name] for name in trained}),
        "ema": params if spec.ema else {},
        "bad_steps": jnp.zeros((), jnp.int32),  # in a row
        "skipped_steps": jnp.zeros((), jnp.int32),  # in all
    }
    return jax.tree.map(np.asarray, jax.device_get(state))


def weights_of(state: State) -> tuple[Arrays, Arrays]:
    """Parameters (the moving average where there is one) and batch-normalisation statistics.

    A teacher's are left out: training alone has them.
    """
    params = state["ema"] or state["params"]
    return {n: v for n, v in params.items() if not n.startswith(TEACHER)}, state["stats"]


def make_step(
    network: Network,
    optimizer: optax.GradientTransformation,
    learning_rate: Callable[[jax.Array], jax.Array],
    trained: Sequence[str],
    spec: TrainSpec,
) -> Callable[[State, dict, jax.Array], tuple[State, dict]]:
    """The per-device body: ``step(state, batch, key) -> state, metrics``, to run under `pmap_step`.

    ``batch`` holds this device's images float32[b, H, W, 3] and labels uint8[b, H, W]. The result
    is that of one device on the joined batch, because every loss term is divided by its normaliser
    over all devices. With accumulation each micro-batch is normalised by itself, as in PyTorch.
    Parameters that are not among ``trained`` are constants: nothing is computed backwards for them.
    """
    dtype = jnp.bfloat16 if spec.bfloat16 else jnp.float32

    def loss(moving, params, stats, images, labels, key):
        model = network.bind(_cast(params | moving, dtype), stats)
        terms = model.losses(images.astype(dtype), labels, key=key)
        values = {
            name: term.value(lambda count: jax.lax.pmean(count, AXIS))
            for name, term in terms.items()
        }
        values["loss"] = sum(values.values())
        return values["loss"], (values, stats_of(model))

    def gradient(params, *args):
        moving = {name: params[name] for name in trained}
        return jax.grad(loss, has_aux=True)(moving, params, *args)

    def micro_batch(carry, xs):
        params, stats, grads = carry
        images, labels, key = xs
        new, (values, stats) = gradient(params, stats, images, labels, key)
        return (params, stats, jax.tree.map(jnp.add, grads, new)), values

    def gradients(state, batch, key):
        params, stats = state["params"], state["stats"]
        images, labels = batch["image"], batch["label"]
        parts = spec.accumulate
        if parts == 1:
            grads, (values, stats) = gradient(params, stats, images, labels, key)
            return grads, stats, values
        images = images.reshape(parts, -1, *images.shape[1:])
        labels = labels.reshape(parts, -1, *labels.shape[1:])
        start = (params, stats, {name: jnp.zeros_like(params[name]) for name in trained})
        xs = (images, labels, jax.random.split(key, parts))
        (_, stats, grads), values = jax.lax.scan(micro_batch, start, xs)
        mean = jax.tree.map(lambda value: value.mean(), values)
        return jax.tree.map(lambda grad: grad / parts, grads), stats, mean

    def step(state: State, batch: dict, key: jax.Array) -> tuple[State, dict]:
        grads, stats, values = gradients(state, batch, step_key(key, state["step"]))
        grads, values = jax.lax.pmean((grads, values), AXIS)
        norm = optax.tree.norm(grads)
        moving = {name: state["params"][name] for name in trained}
        updates, opt = optimizer.update(grads, state["opt"], moving)
        params = state["params"] | optax.apply_updates(moving, updates)
        moved = {"params": params, "stats": stats, "opt": opt, "ema": {}}
        if spec.ema:
            moved["ema"] = jax.tree.map(
                lambda old, new: spec.ema * old + (1.0 - spec.ema) * new, state["ema"], params
            )
        finite = jnp.isfinite(values["loss"]) & jnp.isfinite(norm)
        kept = {name: state[name] for name in moved}
        new_state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), moved, kept)
        bad = jnp.where(finite, 0, 1).astype(jnp.int32)
        new_state |= {
            "step": state["step"] + 1,
            "bad_steps": (state["bad_steps"] + bad) * bad,
            "skipped_steps": state["skipped_steps"] + bad,
        }
        values |= {
            "grad_norm": norm,
            "lr": learning_rate(state["step"]),
            "bad_steps": new_state["bad_steps"],
            "skipped_steps": new_state["skipped_steps"],
        }
        return new_state, values

    return step


def _cast(params: Arrays, dtype) -> Arrays:
    return {name: value.astype(dtype) for name, value in params.items()}


@dataclass(frozen=True)
class Hooks:
    """What the loop reports to. All but the last take the number of finished steps first.

    log(step, values); checkpoint(step, host state, score or None); evaluate(step, params, stats)
    -> score, the higher the better. stop(), asked once after every step -> whether to leave.
    """

    log: Callable[[int, dict[str, float]], None]
    checkpoint: Callable[[int, State, float | None], None]
    evaluate: Callable[[int, Arrays, Arrays], float]
    stop: Callable[[], bool]


def fit(
    step: Callable, state: State, batches: Iterator[dict], spec: TrainSpec, hooks: Hooks
) -> State:
    """Run from ``state["step"]`` to ``spec.steps``; returns the last state on the host.

    ``batches`` must start at that step. Leaves early, after a checkpoint, when ``hooks.stop()``.
    Raises `UserError` after ``spec.max_bad_steps`` non-finite steps in a row.
    """
    run = pmap_step(step)
    first = int(state["step"])
    state = replicate(state)
    key, running = jax.random.key(spec.seed), None
    for done in range(first + 1, spec.steps + 1):
        state, values = run(state, shard(next(batches)), key)
        # One step ahead of the devices, no more: a stop need not wait for all that is under way.
        jax.block_until_ready(running)
        running = values
        last = done == spec.steps
        if done % spec.log_every == 0 or done == first + 1 or last:
            values = {name: float(value) for name, value in unreplicate(values).items()}
            hooks.log(done, values)
            _check_finite(done, values, spec)
        score = None
        if last or (spec.eval_every and done % spec.eval_every == 0):
            score = hooks.evaluate(done, *weights_of(unreplicate(state)))
        stopping = hooks.stop()  # asked late, so that a signal during a step stops after this one
        if last or stopping or score is not None or done % spec.checkpoint_every == 0:
            hooks.checkpoint(done, unreplicate(state), score)
        if stopping:
            break
    return unreplicate(state)


def _check_finite(done: int, values: dict[str, float], spec: TrainSpec) -> None:
    if values["bad_steps"] < spec.max_bad_steps:
        return
    terms = [name for name, value in values.items() if not np.isfinite(value)]
    raise UserError(
        f"step {done}: {int(values['bad_steps'])} non-finite steps in a row "
        f"({', '.join(terms) or 'gradients'}); lower optim.lr, set optim.clip_norm, check the data"
    )
