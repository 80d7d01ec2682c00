"""The one error that users see."""

LONGEST = 2000  # characters of a message


class UserError(Exception):
    """Something the user can mend: one line that names the value, the place and the mend.

    Command lines print it as ``error: ...`` and exit with code 2 (see `jaxseg.cli`).

    Messages quote what stands in files, which may be anything. So a line break becomes a space,
    what a terminal would obey or cannot show becomes its escape, and from a message that is too
    long the middle is taken out.
    """

    def __init__(self, message: str):
        super().__init__(_shortened(_in_one_line(_shortened(str(message)))))


def _in_one_line(text: str) -> str:
    text = " ".join(text.replace("\t", " ").splitlines())
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _shortened(text: str) -> str:
    if len(text) <= LONGEST:
        return text
    half = LONGEST // 2 - 10
    return f"{text[:half]} [...] {text[-half:]}"
