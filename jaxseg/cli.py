"""How the command lines start and how they fail: one line on standard error and exit code 2."""

import os
import re
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
        rest = flags.FLAGS(argv)[1:]
        if "config" in flags.FLAGS and flags.FLAGS.config is not None:
            flags.FLAGS.config.items()  # a file that is not there is noticed at the first access
        return rest
    except flags.Error as error:
        raise UserError(f"{error}; see --help") from error
    except OSError as error:
        raise UserError("--config: no such file; name one of configs/*.py") from error
    except (AttributeError, KeyError) as error:  # how ml_collections says that a field is unknown
        raise UserError(f"--config: {_unknown_field(str(error.args[0]))}") from error


def _unknown_field(text: str) -> str:
    words = re.search(r'Did you mean "(\w+)" instead of "(\w+)"', text)
    if words:
        return f"unknown field {words[2]!r}; did you mean {words[1]!r}?"
    name = text.strip("'\"")
    return f"unknown field {name!r}; jaxseg/config.py lists the fields"


def _fail(error: BaseException, message: str, code: int = 2) -> None:
    if os.environ.get("JAXSEG_TRACEBACK"):
        raise error
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)
