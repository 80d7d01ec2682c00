"""Semantic segmentation with plain vision transformers that spend compute where it is hard.

model = jaxseg.load("runs/mine")
labels = model.predict(image).labels
"""

__version__ = "0.1.0"


def __getattr__(name: str):
    # jax and flax take seconds to import: only who loads a model pays for them.
    if name == "load":
        from jaxseg.model import load

        return load
    raise AttributeError(f"module 'jaxseg' has no attribute {name!r}")
