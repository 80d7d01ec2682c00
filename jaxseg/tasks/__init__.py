"""What is trained and evaluated: a module per value of ``config.task``.

Each offers ``spec(config, classes)``, ``recipe(config, classes)``, ``start(config, spec, params,
stats)``, ``validator(config, network, bfloat16)`` and ``evaluate(config, stored, source, out)``.
"""

from jaxseg.errors import UserError
from jaxseg.tasks import classify, policy, segment

TASKS = {"segment": segment, "policy": policy, "classify": classify}


def of(config):
    """The module of the configuration's task."""
    if config.task not in TASKS:
        raise UserError(f"config.task={config.task!r}: choose one of {', '.join(TASKS)}")
    return TASKS[config.task]
