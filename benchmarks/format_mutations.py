"""Damage along the structure of binary formats.

A file is taken apart, one part is changed, and lengths and checksums are made right again:
otherwise a reader's first check would refuse nearly all of it and nothing behind that check would
ever be tried.
"""

import ast
import io
import pickletools
import random
import struct
import zipfile
import zlib

from benchmarks.mutations import Mutation, anyhow, json_part

BOMB = zlib.compress(bytes(20_000_000))


def safetensors_header(content: bytes, draw: random.Random) -> bytes:
    """The header changed and its length with it."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = draw.choice((json_part, json_part, anyhow))(content[8:end], draw)
    return len(header).to_bytes(8, "little") + header + content[end:]


def zip_member(part: Mutation) -> Mutation:
    """``part`` inside one member of a zip archive, or another name, kind or size of a member."""

    def mutate(content: bytes, draw: random.Random) -> bytes:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = [(info.filename, archive.read(info)) for info in archive.infolist()]
        at = draw.randrange(len(members))
        name, data = members[at]
        act = draw.randrange(12)
        if act == 0:
            strange = (
                "../" + name,
                "",
                name + "\x1b[2J",
                "x" * 60_000,
                members[0][0],
                "/etc/passwd",
            )
            members[at] = draw.choice(strange), data
        elif act == 1:
            members[at] = name, data[:100] + bytes(8_000_000)  # a bomb, if it is compressed
        elif act == 2:
            members.pop(at)
        else:
            members[at] = name, part(data, draw)
        kind = draw.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", kind) as archive:
            for name, data in members:
                archive.writestr(zipfile.ZipInfo(name), data, kind)
        return stream.getvalue()

    return mutate


def npy_header(content: bytes, draw: random.Random) -> bytes:
    """An .npy file with another type, shape or order in its header."""
    size = int.from_bytes(content[8:10], "little")
    header = ast.literal_eval(content[10 : 10 + size].decode())
    strange = ("'|O'", "'<f4,<f4'", "'<U9'", "'<f3'", "'V0'", "[('a', '<f4')]", "'<M8[s]'", "None")
    strange += ("(9223372036854775807,)", "(4294967296, 4294967296)", "(-1,)", "(1e9,)", "()", "3")
    strange += ("(" * 400 + ")" * 400, "(0, 9223372036854775807)", "True", "'\x1b[31m'")
    texts = {key: repr(value) for key, value in header.items()}
    texts[draw.choice(list(texts))] = draw.choice(strange)
    text = "{" + ", ".join(f"{key!r}: {value}" for key, value in texts.items()) + "}\n"
    return content[:8] + len(text).to_bytes(2, "little") + text.encode() + content[10 + size :]


def opcodes(content: bytes, draw: random.Random) -> bytes:
    """Opcodes of a pickle taken out, doubled, swapped or replaced; what follows it stays."""
    ops, rest = _opcodes(content)
    strange = [bytes([code]) for code in b"02(1.N]})RbQsue\x85\x86\x88\x93\x81\x94"]
    strange += [b"h\0", b"j\xff\xff\xff\xff", b"J\0\0\0\x80", b"X\xff\xff\xff\x7f"]
    strange += [
        b"cos\nsystem\n",
        b"c\x1b[31m\nx\n",
        b"\x8a\xff" + b"\x7f" * 255,
        b"G" + b"\x7f" * 8,
    ]
    strange += [b"(" * 5000 + b"t" * 5000, b"]" * 3000 + b"a" * 2999]
    for _ in range(draw.choice((1, 1, 2, 4))):
        a, b = draw.randrange(len(ops)), draw.randrange(len(ops))
        ops[a : a + 1] = draw.choice(([], [ops[a]] * 2, [ops[b]], [draw.choice(strange)]))
        if not ops:
            break
    return b"".join(ops) + rest


def _opcodes(content: bytes) -> tuple[list[bytes], bytes]:
    """The opcodes of the pickle that begins here, and what follows it."""
    places = [place for _, _, place in pickletools.genops(content)]
    end = places[-1] + 1
    return [content[a:b] for a, b in zip(places, [*places[1:], end], strict=True)], content[end:]


def chained(content: bytes, draw: random.Random) -> bytes:
    """`opcodes` of one in the chain of five pickles with which an older PyTorch file begins."""
    before = b""
    for _ in range(draw.choice((0, 1, 2, 3, 3, 3, 3, 4))):  # the fourth holds the state
        ops, content = _opcodes(content)
        before += b"".join(ops)
    return before + opcodes(content, draw)


def png_chunk(content: bytes, draw: random.Random) -> bytes:
    """A chunk of a PNG changed, added, doubled, moved or taken out; checksums are right."""
    chunks, at = [], 8
    while at < len(content):
        size = int.from_bytes(content[at : at + 4], "big")
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + size]))
        at += 12 + size
    strange = [(b"zTXt", b"a\0\0" + BOMB), (b"iCCP", b"a\0\0" + BOMB), (b"tEXt", b"\x1b[31m\0x")]
    strange += [(b"eXIf", b"MM\0*\xff\xff\xff\xff"), (b"tRNS", bytes(300)), (b"PLTE", bytes(7))]
    strange += [(b"acTL", bytes(8)), (b"fcTL", b"\xff" * 26), (b"IDAT", BOMB), (b"gAMA", b"")]
    sizes = [(1, 1), (2**31 - 1, 1), (65536, 65536), (0, 5), (13_000, 13_000), (20_000, 20_000)]
    at, act = draw.randrange(len(chunks)), draw.randrange(6)
    kind, data = chunks[at]
    if act == 0:
        chunks[0] = b"IHDR", struct.pack(">II", *draw.choice(sizes)) + chunks[0][1][8:]
    elif act == 1:
        chunks.insert(at, draw.choice(strange))
    elif act == 2:
        chunks[at : at + 1] = [chunks[at]] * draw.choice((0, 2))
    elif act == 3:
        chunks[at], chunks[-1] = chunks[-1], chunks[at]
    else:
        chunks[at] = kind, anyhow(data, draw)
    return content[:8] + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
