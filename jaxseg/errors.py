"""The one error that users see."""


class UserError(Exception):
    """Something the user can mend: one line that names the value, the place and the mend.

    Command lines print it as ``error: ...`` and exit with code 2 (see `jaxseg.cli`).
    """
