"""How the command lines start and how they fail: one line on standard error and exit code 2."""

import os
import sys
from collections.abc import Callable

from absl import flags

from jaxseg.errors import UserError


def define_config(*, required: bool = True) -> None:
    """Flags --config=FILE.py[:smoke] and --config.field=value (unknown fields are refused)."""
    from ml_collections import config_flags

    config_flags.DEFINE_config_file("config", lock_config=True)
    if required:
        flags.mark_flag_as_required("config")


def run(main: Callable[[list[str]], int | None], *, arguments: bool = False) -> None:
    """Parse the flags, call ``main(positional arguments)``, exit with its code (None is 0).

    Positional arguments are refused unless ``arguments``.

    Set JAXSEG_TRACEBACK=1 to see where an error came from.
    """
    try:
        rest = _parse(sys.argv)
        if rest and not arguments:
            raise UserError(f"unexpected argument {rest[0]!r}; flags look like --name=value")
        sys.exit(main(rest))
    except UserError as error:
        _fail(error, str(error))
    except KeyboardInterrupt as error:
        _fail(error, "interrupted", code=130)


def _parse(argv: list[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)[1:]
    except UserError:
        raise
    except flags.Error as error:
        raise UserError(f"{_one_line(error)}; see --help") from error
    except OSError as error:
        raise UserError(
            f"--config: cannot read {error.filename}; name a file of configs/"
        ) from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # from ml_collections
        raise UserError(f"--config: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    text = error.args[0] if error.args and isinstance(error.args[0], str) else str(error)
    return " ".join(text.split())


def _fail(error: BaseException, message: str, code: int = 2) -> None:
    if os.environ.get("JAXSEG_TRACEBACK"):
        raise error
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)
