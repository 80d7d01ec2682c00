"""Damage to valid files: at random, and along the structure of texts and JSON.

A mutation is a function of (content, draw) that gives other content; all randomness is from
``draw``, so that the same draw does the same damage.
"""

import json
import random
from collections.abc import Callable

Mutation = Callable[[bytes, random.Random], bytes]

# What JSON can hold where something else is expected, as it stands in a file.
VALUES = (
    *("null", "true", "-1", "0", "1.5", "1e308", "1e999", "-0.0", "NaN", "-Infinity", "9" * 30),
    *("9" * 5000, "[]", "{}", "[[1]]", '{"a": {"b": null}}', "[null, 1, {}]", "[" * 40 + "]" * 40),
    *("[" * 100_000 + "]" * 100_000, '{"a":' * 50_000 + "1" + "}" * 50_000, "[1", '"', "\\"),
    *('""', '"' + "x" * 1_000_000 + '"', '"\\u001b[31mred"', '"two\\nlines"', '"\\ud800"'),
    *('"\x1b]0;title\x07"', '"\\u0000"', '"../../etc/passwd"', '"/etc/passwd"', '"."', '"é\u202e"'),
    *("4611686018427387904", "18446744073709551615", "[9223372036854775807, 2]", "[-5]"),
    *('"F8_E4M3"', '"BF16"', '"F64"', '"I8"', '"BOOL"', '"U64"', '"C64"', '"F4"', "[0, 3]"),
)
EXTREMES = (
    0,
    1,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0xFFFF,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**63 - 1,
    2**64 - 1,
)


def flip(content: bytes, draw: random.Random) -> bytes:
    """One to eight bits."""
    damaged = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 8)) if damaged else 0):
        damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
    return bytes(damaged)


def cut(content: bytes, draw: random.Random) -> bytes:
    """The beginning only."""
    return content[: draw.randrange(len(content) + 1)]


def splice(content: bytes, draw: random.Random) -> bytes:
    """A run of bytes taken out, repeated, blanked, or put over another place."""
    first, last, at = sorted(draw.randrange(len(content) + 1) for _ in range(3))
    run = content[first : min(last, first + draw.choice((4, 64, 4096)))]
    new = draw.choice(
        (b"", run * 2, bytes(len(run)), draw.randbytes(8), content[at : at + len(run)])
    )
    return content[:first] + new + content[first + len(run) :]


def number(content: bytes, draw: random.Random) -> bytes:
    """An extreme number of 1, 2, 4 or 8 bytes in either byte order, rather near the beginning."""
    size = draw.choice((1, 2, 4, 8))
    value = draw.choice(EXTREMES) % 256**size
    at = draw.randrange(min(len(content), draw.choice((16, 256, 1 << 30))) or 1)
    return (
        content[:at] + value.to_bytes(size, draw.choice(("little", "big"))) + content[at + size :]
    )


RANDOM = (flip, cut, splice, number)


def anyhow(content: bytes, draw: random.Random) -> bytes:
    """One of the damages that know nothing of the format."""
    return draw.choice(RANDOM)(content, draw)


def json_part(content: bytes, draw: random.Random) -> bytes:
    """One or two parts of a JSON text replaced, renamed, taken out or doubled."""
    tree = [json.loads(content)]
    for _ in range(draw.choice((1, 1, 2))):
        at, key = draw.choice(list(_places(tree)))
        act = draw.randrange(6)
        if act == 0 and isinstance(at, dict):
            at[json.loads(draw.choice(('"x\\u001b[2J"', '""', '"\\ud800"', '"a\\nb"')))] = at.pop(
                key
            )
        elif act == 1 and at is not tree:
            del at[key]
        elif act == 2 and isinstance(at, list) and at is not tree:
            at.insert(key, at[key])
        else:
            at[key] = f"\0{draw.randrange(len(VALUES))}\0"
    text = json.dumps(tree[0]).split('"\\u0000')  # places of the values: they may be no JSON at all
    parts = (part.split('\\u0000"', 1) for part in text[1:])
    return (text[0] + "".join(VALUES[int(n)] + rest for n, rest in parts)).encode()


def _places(tree):
    """(container, key) of everything inside, as deep as it goes."""
    for key, part in list(tree.items() if isinstance(tree, dict) else enumerate(tree)):
        yield tree, key
        if isinstance(part, dict | list):
            yield from _places(part)


def json_line(content: bytes, draw: random.Random) -> bytes:
    """A line of JSON lines damaged, along its structure or not."""
    lines = content.splitlines(keepends=True)
    at = draw.randrange(len(lines))
    lines[at] = draw.choice((json_part, anyhow))(lines[at].strip(), draw) + b"\n"
    return b"".join(lines)


def text_line(content: bytes, draw: random.Random) -> bytes:
    """Words of a text file replaced by strange ones."""
    strange = (
        "\x1b[31mred",
        "\0",
        "\x85",
        "\u2028",
        "\u202e",
        "x" * 10**5,
        "9" * 5000,
        "²",
        "٣",
        "\t" * 9,
    )
    strange += (" " * 10**5 + "x", "1,2," * 20_000, "-1", "256", "nan", "\ufeff", "\r", "a\x0bb")
    lines = content.decode().splitlines()
    at = draw.randrange(len(lines))
    words = lines[at].split("\t")
    words[draw.randrange(len(words))] = draw.choice(strange)
    lines[at] = draw.choice("\t ").join(words)
    return draw.choice(("\n", "\r\n")).join(lines).encode()
