"""What every command line does to jax before the first computation."""

import logging
import os

import jax

from jaxseg.zoo import cache_folder


def prepare() -> None:
    """Keep compiled programs between runs and silence libraries that talk about themselves.

    The cache lies in ``$JAX_COMPILATION_CACHE_DIR`` or below ``$JAXSEG_CACHE`` (~/.cache/jaxseg); a
    second run of the same program then reads it instead of compiling.
    """
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(cache_folder() / "compiled")
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    for name in ("absl", "orbax", "grain", "jax"):
        logging.getLogger(name).setLevel(logging.WARNING)
