"""What every command line does to jax before the first computation."""

import logging
import os
import pathlib

import jax


def prepare() -> None:
    """Keep compiled programs between runs and silence libraries that talk about themselves.

    The cache lies in ``$JAX_COMPILATION_CACHE_DIR`` or ``~/.cache/jaxseg/compiled``; a second
    run of the same program then reads it instead of compiling.
    """
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if not folder:
        folder = str(pathlib.Path.home() / ".cache" / "jaxseg" / "compiled")
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    for name in ("absl", "orbax", "grain", "jax"):
        logging.getLogger(name).setLevel(logging.WARNING)
