"""Networks: thin flax NNX modules over pure functions. Nothing here reads a config or a file."""
