"""Messages that quote hostile files are still one short line that a terminal only shows."""

import pickle

import pytest

from jaxseg.errors import LONGEST, UserError


@pytest.mark.parametrize(
    "message, shown",
    [
        ("a/é.png: no such file", "a/é.png: no such file"),
        ("two  blanks", "two  blanks"),
        ("a\nb\r\nc\u2028d\te", "a b c d e"),
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("\0\x9b\x7f", "\\x00\\x9b\\x7f"),
        ("\ud800\u202e", "\\ud800\\u202e"),
    ],
)
def test_a_message_is_one_printable_line(message, shown):
    assert str(UserError(message)) == shown
    assert shown.isprintable()


@pytest.mark.parametrize("filling", ["x", "\0", "\n", "\U000e0001"])
def test_a_long_message_keeps_its_place_and_its_mend(filling):
    error = UserError(f"config.json: not {filling * 10**6}; get it again")
    assert len(str(error)) <= LONGEST
    assert str(error).startswith("config.json: not ") and str(error).endswith("; get it again")
    assert " [...] " in str(error)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)  # from a data worker
