"""Settings of the whole suite: two CPU devices, exact matrix products, no silent promotions."""

import os
import signal
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of the time of the suite is compiling tiny models, which is shorter without optimisations and
# without XLA's newer code generator (docs/performance.md). XLA_FLAGS="" and
# JAX_DISABLE_MOST_OPTIMIZATIONS=0 run the tests with what users run.
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_default_matmul_precision", "highest")
jax.config.update("jax_numpy_dtype_promotion", "strict")
# Several tests run the same program from scratch: compile it once per run of the suite. The first
# process makes the folder, its workers inherit the name.
_COMPILED = "JAXSEG_TESTS_COMPILED"
if _COMPILED not in os.environ:
    _folder = tempfile.TemporaryDirectory(prefix="jaxseg-compiled-")
    os.environ[_COMPILED] = _folder.name
jax.config.update("jax_compilation_cache_dir", os.environ[_COMPILED])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


# A shell that runs the suite in the background has it ignore Ctrl-C, which some tests send.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module", autouse=True)
def _forget_programs():
    """Programs of a file are freed after it: thousands of them in one process exhaust its memory
    maps, and XLA then crashes."""
    yield
    jax.clear_caches()
