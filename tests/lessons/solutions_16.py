"""What a learner may write in lesson 16, right and wrong."""

import json
import math

import numpy as np


def run_program(instructions):
    stack, marks, memo = [], [], {}
    for name, argument in instructions:
        if name in ("BININT1", "BINUNICODE"):
            stack.append(argument)
        elif name.startswith("EMPTY"):
            stack.append({"EMPTY_LIST": [], "EMPTY_DICT": {}, "EMPTY_TUPLE": ()}[name])
        elif name == "BINPUT":
            memo[argument] = stack[-1]
        elif name == "BINGET":
            stack.append(memo[argument])
        elif name == "MARK":
            marks.append(len(stack))
        elif name in ("TUPLE", "APPENDS", "SETITEMS"):
            mark = marks.pop()
            items = stack[mark:]
            del stack[mark:]
            if name == "TUPLE":
                stack.append(tuple(items))
            elif name == "APPENDS":
                stack[-1] += items
            else:
                for i in range(0, len(items), 2):
                    stack[-1][items[i]] = items[i + 1]
        elif name == "GLOBAL":
            stack.append(("name", argument))
        elif name == "REDUCE":
            arguments = stack.pop()
            stack.append(("call", stack.pop(), arguments))
        elif name == "STOP":
            return stack[-1]


def strides_of(size):
    strides, step = [], 1
    for length in reversed(size):
        strides.append(step)
        step *= length
    return tuple(reversed(strides))


def view(storage, offset, size, strides):
    places = np.full(size, offset)
    for axis, (length, step) in enumerate(zip(size, strides, strict=True)):
        shape = [1] * len(size)
        shape[axis] = length
        places = places + step * np.arange(length).reshape(shape)
    return storage[places]


def safetensors_tensor(data, name):
    numbers = 8 + int.from_bytes(data[:8], "little")
    entry = json.loads(data[8:numbers])[name]
    count = (entry["data_offsets"][1] - entry["data_offsets"][0]) // 4
    flat = np.frombuffer(data, "<f4", count, numbers + entry["data_offsets"][0])
    return flat.reshape(entry["shape"])


def run_program_reduces_backwards(instructions):
    result = run_program(instructions)
    if isinstance(result, tuple) and result[0] == "call":
        return result[0], result[2], result[1]
    return result


def run_program_appends_one_list(instructions):
    stack, below, memo = [], [], {}
    for name, argument in instructions:
        if name in ("BININT1", "BINUNICODE"):
            stack.append(argument)
        elif name.startswith("EMPTY"):
            stack.append({"EMPTY_LIST": [], "EMPTY_DICT": {}, "EMPTY_TUPLE": ()}[name])
        elif name == "BINPUT":
            memo[argument] = stack[-1]
        elif name == "BINGET":
            stack.append(memo[argument])
        elif name == "MARK":
            below.append(stack)
            stack = []
        elif name in ("TUPLE", "APPENDS", "SETITEMS"):
            items, stack = stack, below.pop()
            if name == "TUPLE":
                stack.append(tuple(items))
            elif name == "APPENDS":
                stack[-1].append(items)
            else:
                stack[-1].update(zip(items[::2], items[1::2], strict=True))
        elif name == "GLOBAL":
            stack.append(("name", argument))
        elif name == "REDUCE":
            stack[-2:] = [("call", stack[-2], stack[-1])]
    return stack[-1]


def strides_of_forwards(size):
    return tuple(math.prod(size[:k]) for k in range(len(size)))


def strides_of_itself_too(size):
    return tuple(math.prod(size[k:]) for k in range(len(size)))


def view_without_offset(storage, offset, size, strides):
    return view(storage, 0, size, strides)


def view_without_strides(storage, offset, size, strides):
    return storage[offset : offset + math.prod(size)].reshape(size)


def safetensors_tensor_from_the_start(data, name):
    entry = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])[name]
    start, end = entry["data_offsets"]
    return np.frombuffer(data[start:end], "<f4").reshape(entry["shape"])


def safetensors_tensor_without_eight(data, name):
    length = int.from_bytes(data[:8], "little")
    entry = json.loads(data[8 : 8 + length])[name]
    start, end = entry["data_offsets"]
    return np.frombuffer(data[length:][start:end], "<f4").reshape(entry["shape"])


def safetensors_tensor_flat(data, name):
    return safetensors_tensor(data, name).ravel()


MISTAKES = [
    (run_program_reduces_backwards, "the wrong way round"),
    (run_program_appends_one_list, "It appends each of them"),
    (strides_of_forwards, "multiply the sizes behind"),
    (strides_of_itself_too, "Each stride has its own size in it"),
    (view_without_offset, "The offset is missing"),
    (view_without_strides, "The strides say how far"),
    (safetensors_tensor_from_the_start, "Those are bytes of the header"),
    (safetensors_tensor_without_eight, "the 8 are missing"),
    (safetensors_tensor_flat, "should have"),
]
