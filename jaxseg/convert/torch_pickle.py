"""The pickles inside PyTorch files as plain data, by an interpreter that can call nothing.

`pickle` runs what a file asks for: it imports any global, calls it, and sets attributes on the
result. Here an opcode can only push a value or fill a container, a global is nothing but its name
(`Name`), and a call is an entry of `CALLS`, all of them functions of this file. So there is nothing
to escape to: no import, no `__reduce__`, no `__setstate__`, no extension registry, no memo table
as long as a file wishes. No call copies what it is given either, or a small file could have the
same megabytes copied a million times. Tensors stay descriptions: their numbers lie elsewhere.

The opcodes are those that Python 3 writes for such data, from protocol 2 (torch.save's) on.
"""

import pickletools
from typing import BinaryIO

from jaxseg.convert.torch_globals import (
    ALLOWED,
    CALLS,
    Attributes,
    Name,
    NumpyArray,
    NumpyDtype,
    Refused,
    Storage,
    quoted,
    stored,
)

MOST_OPCODES = 1_000_000  # a checkpoint of 300 arrays with its optimizer has 30 thousand
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
VALUES = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"}
VALUES |= {"BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES"}
VALUES |= {"BINBYTES8"}
# A tuple as a key would be hashed, and hashing one nested deep enough kills the process.
KEYS = {str, bytes, int, float, bool, type(None)}


def unpickle(stream: BinaryIO) -> tuple[object, dict[str, Storage]]:
    """(value, storages by key) of the pickle that begins here; the stream then stands behind it.

    The value is made of dicts, lists, tuples, str, bytes, numbers, bools and None, and of the
    classes of `torch_globals`; it may contain itself. Raises Refused (a phrase that follows the
    file's name) if the file asks for anything else, and any other exception if it is damaged.
    """
    stack, marks, memo, storages = [], [], {}, {}
    start, encoded = stream.tell(), 0

    def since_mark():
        first = marks.pop()
        items = stack[first:]
        del stack[first:]
        return items

    for count, (opcode, arg, position) in enumerate(pickletools.genops(stream)):
        if count == MOST_OPCODES:
            raise Refused(f"holds a pickle of more than {MOST_OPCODES} opcodes")
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return stack.pop(), storages
            case name if name in VALUES:
                stack.append(arg)
            case name if name in CONSTANTS:
                stack.append(CONSTANTS[name])
            case "EMPTY_LIST" | "EMPTY_SET":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_TUPLE":
                stack.append(())
            case "MARK":
                marks.append(len(stack))
            case "TUPLE":
                stack.append(tuple(since_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3" as name:
                size = int(name[-1])
                stack[-size:] = [tuple(stack[-size:])]
            case "APPEND":
                item = stack.pop()
                _extend(stack[-1], [item])
            case "APPENDS" | "ADDITEMS":
                items = since_mark()
                _extend(stack[-1], items)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _set_items(stack[-1], [(key, value)])
            case "SETITEMS":
                items = since_mark()
                _set_items(stack[-1], zip(items[::2], items[1::2], strict=True))
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINPUT" | "LONG_BINPUT":
                memo[arg] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                if arg not in memo:
                    raise ValueError("a reference to nothing")
                stack.append(memo[arg])
            case "GLOBAL":
                stack.append(_name(*arg.split(" ", 1)))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(_name(module, name))
            case "REDUCE" | "NEWOBJ":
                args, called = stack.pop(), stack.pop()
                stack.append(_call(called, args))
                if called == "_codecs.encode":
                    encoded += len(stack[-1])
                    if encoded > position - start:
                        raise ValueError("more bytes than there were texts to encode")
            case "BUILD":
                state = stack.pop()
                _build(stack[-1], state)
            case "BINPERSID":
                storage = stored(stack.pop())
                known = storages.setdefault(storage.key, storage)
                if (known.dtype, known.numel) != (storage.dtype, storage.numel):
                    raise ValueError(f"two kinds of storage {quoted(storage.key)}")
                stack.append(storage)
            case name:
                raise Refused(f"uses the pickle opcode {name}")
    raise EOFError("a pickle without an end")


def _name(module, name) -> Name:
    """Python writes "__builtin__" for Python 2's sake. What is not ALLOWED is refused."""
    if type(module) is not str or type(name) is not str:
        raise ValueError("a global without a name")
    full = Name(f"{module}.{name}".replace("__builtin__.", "builtins.", 1))
    if full not in ALLOWED:
        raise Refused(f"asks for the global {quoted(full)}")
    return full


def _call(called, args):
    if type(called) is not Name or called not in CALLS or type(args) is not tuple:
        raise ValueError("a call of something that cannot be called")
    return CALLS[called](*args)


def _build(target, state):
    if isinstance(target, NumpyDtype):
        if state[1] not in ("<", ">", "|"):
            raise ValueError("a numpy type of unknown byte order")
        target.order = state[1]
    elif isinstance(target, NumpyArray | Attributes):
        target.state = state
    elif type(target) is not dict:  # what state_dict() hangs on a dict are version numbers
        raise Refused(f"sets the state of a {type(target).__name__}")


def _extend(target, items):
    if type(target) is not list:
        raise ValueError("appends to something that is no list")
    target.extend(items)


def _set_items(target, items):
    if type(target) is not dict:
        raise ValueError("sets a key of something that is no dict")
    for key, value in items:
        if type(key) not in KEYS:
            raise Refused(f"has a {type(key).__name__} as the key of a dict")
        target[key] = value
