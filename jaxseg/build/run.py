"""Optimizer, training loop and evaluation."""

from ml_collections import ConfigDict

from jaxseg.build.checks import one_of, two_sides
from jaxseg.build.method import frozen
from jaxseg.inference import EvalSpec
from jaxseg.optim import OptimSpec
from jaxseg.training import TrainSpec


def optim_spec(config: ConfigDict) -> OptimSpec:
    """Optimizer and schedule."""
    optim = config.optim
    one_of("optim.name", optim.name, ("adamw", "sgd"))
    one_of("optim.schedule", optim.schedule, ("poly", "cosine"))
    return OptimSpec(
        optimizer=optim.name,
        lr=optim.lr,
        weight_decay=optim.weight_decay,
        lr_multipliers=tuple(optim.lr_multipliers),
        no_decay=tuple(optim.no_decay),
        freeze=tuple(optim.freeze) + frozen(config),
        clip_norm=optim.clip_norm,
        warmup_steps=optim.warmup_steps,
        warmup_multiplies=optim.warmup_multiplies,
        schedule=optim.schedule,
        power=optim.power,
        end_lr=optim.end_lr,
        total_steps=optim.schedule_steps or config.train.steps,
    )


def train_spec(config: ConfigDict) -> TrainSpec:
    """What one step does and how long the loop runs."""
    train, optim = config.train, config.optim
    return TrainSpec(
        seed=config.seed,
        steps=train.steps,
        accumulate=optim.accumulate,
        ema=optim.ema,
        bfloat16=config.model.bfloat16,
        log_every=train.log_every,
        eval_every=train.eval_every,
        checkpoint_every=train.checkpoint_every,
        max_bad_steps=train.max_bad_steps,
    )


def eval_spec(config: ConfigDict) -> EvalSpec:
    """How images are evaluated."""
    evaluation, data = config.eval, config.data
    one_of("eval.mode", evaluation.mode, ("slide", "whole"))
    if evaluation.resize:
        two_sides("eval.resize", evaluation.resize)
    two_sides("eval.crop", evaluation.crop)
    two_sides("eval.stride", evaluation.stride)
    return EvalSpec(
        mode=evaluation.mode,
        crop=tuple(evaluation.crop),
        stride=tuple(evaluation.stride),
        scales=tuple(evaluation.scales),
        flip=evaluation.flip,
        batch_size=evaluation.batch_size,
        resize=tuple(evaluation.resize) or None,
        mean=tuple(data.mean),
        std=tuple(data.std),
    )
