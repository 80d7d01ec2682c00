"""Learning-rate schedules and optimisers over a flat dict of parameters, as torch counts them."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import optax

from jaxseg.errors import UserError

Schedule = Callable[[jax.Array | int], jax.Array]


@dataclass(frozen=True, kw_only=True)
class OptimSpec:
    """Everything that decides an update. Defaults: plain AdamW, poly to zero, no warm-up.

    Steps count optimiser updates from 0. ``warmup_start`` is a factor of ``lr``; ``end_lr`` is an
    absolute rate. ``lr_multipliers`` holds (pattern, factor) pairs, ``no_decay`` and ``freeze``
    patterns, all for `re.search` on a parameter's dotted name; the first multiplier that matches
    wins, as in mmcv's paramwise_cfg; ``freeze`` names what `trainable` leaves out. ``clip_norm`` 0
    means no clipping. ``momentum`` serves "sgd" only, ``betas`` and ``eps`` serve "adamw" only.
    """

    lr: float
    weight_decay: float
    total_steps: int
    optimizer: str = "adamw"
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    momentum: float = 0.9
    clip_norm: float = 0.0
    schedule: str = "poly"
    power: float = 0.9
    end_lr: float = 0.0
    warmup_steps: int = 0
    warmup_start: float = 1e-6
    warmup_multiplies: bool = False
    lr_multipliers: tuple[tuple[str, float], ...] = ()
    no_decay: tuple[str, ...] = ()
    freeze: tuple[str, ...] = ()


def trainable(spec: OptimSpec, param_names: Iterable[str]) -> list[str]:
    """The names that are trained, in their order.

    Raises UserError for a pattern that is broken or matches nothing, and when nothing is left.
    """
    names = list(param_names)
    frozen = {n for pattern in spec.freeze for n in _matching("freeze", pattern, names)}
    if frozen == set(names):
        raise UserError(f"freeze: {spec.freeze} leaves nothing to train")
    return [name for name in names if name not in frozen]


def learning_rate(spec: OptimSpec) -> Schedule:
    """The rate of update ``step`` (int or traced int, from 0) as a float32 scalar.

    Two conventions of linear warm-up over W of T steps:

    * mmengine (``warmup_multiplies`` False): the warm-up replaces the decay and reaches ``lr`` at
      step W - 1; the decay starts afresh at step W and reaches ``end_lr`` at step T - 1.
    * mmcv 0.x (True): the decay runs from step 0 and would reach ``end_lr`` at step T; the warm-up
      multiplies it and reaches 1 at step W.

    Beyond T the rate stays at its end. Raises UserError for an unknown schedule or T <= W.
    """
    warm, total = spec.warmup_steps, spec.total_steps
    if spec.schedule not in ("poly", "cosine"):
        raise UserError(f'schedule is "{spec.schedule}"; choose "poly" or "cosine"')
    if total <= warm:
        raise UserError(f"total_steps is {total}; it must exceed warmup_steps, which is {warm}")

    first, last = (0, total) if spec.warmup_multiplies else (warm, total - 1)
    warm_span = warm if spec.warmup_multiplies else warm - 1

    def rate(step):
        t = jnp.asarray(step, jnp.float32)
        left = jnp.clip((last - t) / max(last - first, 1), 0.0, 1.0)
        if spec.schedule == "poly":
            decay = left**spec.power
        else:
            decay = 0.5 * (1.0 - jnp.cos(jnp.pi * left))
        decayed = spec.end_lr + (spec.lr - spec.end_lr) * decay
        factor = spec.warmup_start + (1.0 - spec.warmup_start) * t / max(warm_span, 1)
        warming = factor * (decayed if spec.warmup_multiplies else spec.lr)
        return jnp.where(t < warm, warming, decayed)

    return rate


def make_optimizer(spec: OptimSpec, param_names: Iterable[str]) -> optax.GradientTransformation:
    """Clip the global norm, then AdamW or SGD, for a flat dict with exactly ``param_names``.

    AdamW decays by rate * weight_decay * parameter, apart from the moments; SGD adds the decay to
    the gradient before the momentum. Both are torch's definitions. A multiplied parameter follows
    the schedule of a base rate ``lr`` * factor, so ``end_lr`` is the same for all of them.
    Raises UserError for an unknown optimizer and for a pattern that is broken or matches nothing.
    """
    names = list(param_names)
    factors = dict.fromkeys(names, 1.0)
    for pattern, factor in reversed(spec.lr_multipliers):
        factors |= dict.fromkeys(_matching("lr_multipliers", pattern, names), factor)
    decayed = dict.fromkeys(names, True)
    for pattern in spec.no_decay:
        decayed |= dict.fromkeys(_matching("no_decay", pattern, names), False)

    decay = optax.add_decayed_weights(spec.weight_decay, mask=decayed)
    if spec.optimizer == "adamw":
        rule = [optax.scale_by_adam(*spec.betas, spec.eps), decay]
    elif spec.optimizer == "sgd":
        rule = [decay, optax.trace(spec.momentum)]
    else:
        raise UserError(f'optimizer is "{spec.optimizer}"; choose "adamw" or "sgd"')
    clip = [optax.clip_by_global_norm(spec.clip_norm)] if spec.clip_norm > 0 else []
    chain = optax.chain(*clip, *rule, _descend(spec, factors))

    def update(updates, state, params=None):
        with jax.numpy_dtype_promotion("standard"):  # optax raises a float to an int32 count
            return chain.update(updates, state, params)

    return optax.GradientTransformation(chain.init, update)


def _matching(field: str, pattern: str, names: list[str]) -> list[str]:
    try:
        matching = [name for name in names if re.search(pattern, name)]
    except re.error as error:
        raise UserError(f'{field}: "{pattern}" is not a regular expression ({error})') from None
    if not matching:
        raise UserError(
            f'{field}: "{pattern}" matches none of the {len(names)} parameters, '
            f'which are named like "{names[0]}"'
        )
    return matching


def _descend(spec: OptimSpec, factors: dict[str, float]) -> optax.GradientTransformation:
    """Multiply each update by minus its own learning rate."""
    rates = {f: learning_rate(replace(spec, lr=spec.lr * f)) for f in set(factors.values())}

    def init(params):
        del params
        return optax.ScaleByScheduleState(count=jnp.zeros((), jnp.int32))

    def update(updates, state, params=None):
        del params
        now = {factor: rate(state.count) for factor, rate in rates.items()}
        scaled = {name: -now[factors[name]] * u for name, u in updates.items()}
        return scaled, optax.ScaleByScheduleState(count=state.count + 1)

    return optax.GradientTransformation(init, update)
