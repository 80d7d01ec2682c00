"""Semantic segmentation with plain vision transformers that spend compute where it is hard."""

__version__ = "0.1.0"
