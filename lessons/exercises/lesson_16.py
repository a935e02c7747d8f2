"""The exercises of lesson 16, the files of torch.save."""

import json
import math
import pickle
import pickletools
from collections.abc import Callable
from typing import Any

import numpy as np

from exercises import Exercise, Grader

Instructions = list[tuple[str, Any]]


def run_program(instructions: Instructions) -> Any:
    return machine(instructions)


def machine(
    instructions: Instructions,
    pairs: bool = True,
    arguments_last: bool = True,
    appends_each: bool = True,
) -> Any:
    """What a program makes; each option that is not set makes a mistake."""
    stack, below, memo = [], [], {}
    for name, argument in instructions:
        match name:
            case "BININT1" | "BINUNICODE":
                stack.append(argument)
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_TUPLE":
                stack.append(())
            case "BINPUT":
                memo[argument] = stack[-1]
            case "BINGET":
                stack.append(memo[argument])
            case "MARK":
                below.append(stack)
                stack = []
            case "TUPLE":
                items, stack = stack, below.pop()
                stack.append(tuple(items))
            case "APPENDS":
                items, stack = stack, below.pop()
                stack[-1].extend(items if appends_each else [items])
            case "SETITEMS":
                items, stack = stack, below.pop()
                half = len(items) // 2
                keys = items[::2] if pairs else items[:half]
                values = items[1::2] if pairs else items[half:]
                stack[-1].update(zip(keys, values, strict=True))
            case "GLOBAL":
                stack.append(("name", argument))
            case "REDUCE":
                top, second = stack.pop(), stack.pop()
                stack.append(("call", second, top) if arguments_last else ("call", top, second))
            case "STOP":
                return stack.pop()
    return None


def strides_of(size: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(size[k + 1 :]) for k in range(len(size)))


def view(
    storage: np.ndarray, offset: int, size: tuple[int, ...], strides: tuple[int, ...]
) -> np.ndarray:
    result = np.empty(size, storage.dtype)
    for position in np.ndindex(*size):
        result[position] = storage[offset + int(np.dot(position, strides))]
    return result


def safetensors_tensor(
    data: bytes, name: str, begin: Callable[[int], int] = lambda length: 8 + length
) -> np.ndarray:
    """`begin`: from the header's length to the byte from which offsets count."""
    length = int.from_bytes(data[:8], "little")
    entry = json.loads(data[8 : 8 + length])[name]
    start, end = (begin(length) + offset for offset in entry["data_offsets"])
    return np.frombuffer(data[start:end], "<f4").reshape(entry["shape"])


# Cases


def instructions_of(value: Any) -> dict[str, Instructions]:
    opcodes = pickletools.genops(pickle.dumps(value, protocol=2))
    return {"instructions": [(opcode.name, argument) for opcode, argument, _ in opcodes]}


TRAP = b"cbuiltins\nprint\n(X\x05\x00\x00\x00helloK\x07K\x08tR."
CALL = {"instructions": [(op.name, argument) for op, argument, _ in pickletools.genops(TRAP)]}
SHARED = ["x", "y"]


def safetensors_file(**tensors: np.ndarray) -> bytes:
    header, end = {}, 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": "F32", "shape": tensor.shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    numbers = b"".join(tensor.tobytes() for tensor in tensors.values())
    return len(text).to_bytes(8, "little") + text + numbers


RNG = np.random.default_rng(16)
FILE = safetensors_file(
    wte=RNG.random((5, 3), np.float32), lnfw=RNG.random(3, np.float32), x=RNG.random((2, 4, 3), "f")
)
STORAGE = RNG.standard_normal(40)


# Mistakes


def strides_forwards(size: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(size[:k]) for k in range(len(size)))


def strides_with_own(size: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(size[k:]) for k in range(len(size)))


def strides_in_bytes(size: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(4 * stride for stride in strides_of(size))


def reshaped(storage, offset, size, strides):
    return storage[offset : offset + math.prod(size)].reshape(size)


grade = Grader(
    Exercise(
        run_program,
        [
            instructions_of([SHARED, {"a": 1, "b": 2, "c": 3, "d": SHARED}, ("p", 3, "q", 4), ()]),
            CALL,
            instructions_of([[5, 6], {}, "k"]),
        ],
        ["result"],
        mistakes={
            "REDUCE has its two things the wrong way round: the arguments are on top, because they "
            "were pushed after the function.": lambda instructions: machine(
                instructions, arguments_last=False
            ),
            "The keys and values of a dict alternate: key, value, key, value.": (
                lambda instructions: machine(instructions, pairs=False)
            ),
            "APPENDS appended one list of items. It appends each of them: extend.": (
                lambda instructions: machine(instructions, appends_each=False)
            ),
        },
    ),
    Exercise(
        strides_of,
        [{"size": (2, 3, 5)}, {"size": (4, 6)}, {"size": (7,)}],
        ["strides"],
        mistakes={
            "You multiplied the sizes in front. The last axis is the one without gaps: multiply "
            "the sizes behind.": strides_forwards,
            "Each stride has its own size in it: multiply only the sizes behind the axis, so that "
            "the last stride is 1.": strides_with_own,
            "Those are bytes. PyTorch counts strides in elements.": strides_in_bytes,
        },
    ),
    Exercise(
        view,
        [
            {"storage": STORAGE, "offset": 3, "size": (2, 3, 4), "strides": (16, 4, 1)},
            {"storage": STORAGE, "offset": 1, "size": (5, 3), "strides": (2, 11)},
            {"storage": STORAGE, "offset": 9, "size": (4,), "strides": (7,)},
        ],
        ["tensor"],
        mistakes={
            "The offset is missing: every place counts from it.": (
                lambda storage, offset, size, strides: view(storage, 0, size, strides)
            ),
            "You took the numbers one after another. The strides say how far the next one is, and "
            "there may be others between.": reshaped,
        },
    ),
    Exercise(
        safetensors_tensor,
        [{"data": FILE, "name": name} for name in ("x", "wte", "lnfw")],
        ["tensor"],
        mistakes={
            "Those are bytes of the header. The offsets count from its end, which is at byte "
            "8 + length.": lambda data, name: safetensors_tensor(data, name, lambda length: 0),
            "The offsets count from the end of the header, which is at byte 8 + length: the length "
            "is missing.": lambda data, name: safetensors_tensor(data, name, lambda length: 8),
            "The offsets count from the end of the header, which is at byte 8 + length: the 8 are "
            "missing.": lambda data, name: safetensors_tensor(data, name, lambda length: length),
        },
    ),
)
