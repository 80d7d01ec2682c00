"""From a configuration to the frozen dataclasses that the rest of the library takes.

`ConfigDict` stops here: nothing below this folder has seen one.
"""

from jaxseg.build.classify import class_eval_spec, classifier_spec
from jaxseg.build.data import class_count, class_recipe, foreground, make_source, recipe
from jaxseg.build.method import graded_sides, merge_decision, policy_spec, teacher
from jaxseg.build.network import segmenter_spec
from jaxseg.build.run import eval_spec, optim_spec, train_spec

__all__ = [
    "class_count",
    "class_eval_spec",
    "class_recipe",
    "classifier_spec",
    "eval_spec",
    "foreground",
    "graded_sides",
    "make_source",
    "merge_decision",
    "optim_spec",
    "policy_spec",
    "recipe",
    "segmenter_spec",
    "teacher",
    "train_spec",
]
