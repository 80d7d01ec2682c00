"""Data: sources (`folder`, `shapes`), numpy transforms and the training pipeline."""
