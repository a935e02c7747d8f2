"""Damage to files, by bad disks and by bad people, and a watch over whoever reads them."""

import io
import json
import os
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from dev.bench.machine import peak_memory
from errors import RunError, UserError

MUTANTS = int(os.environ.get("MUTANTS", 100))
MOST_SECONDS, MOST_BYTES = 1, 200_000_000

# Numbers at which some type or other ends.
EDGES = [0, 1, *(2**bits + step for bits in (7, 8, 15, 16, 24, 31, 32, 63) for step in (-1, 0))]
STRANGE = [None, True, -1, 1.5, 1e-300, 1e400, 10**40, "", "a", "a b", [], [[]], {}, *EDGES]
SYNTAX = [b"0", b"-1", b"1e9", b"null", b'"', b"[", b"]", b"{", b"}", b",", b":", b"\\", b"\n"]


def check_mutants(folder: Path, read: Callable[[], Any], chance: Random) -> None:
    """Damage a file of a folder, let `read` read it, mend it, and again, `MUTANTS` times.

    Each is read, or refused with a sentence that names it, in a second of the processor's time, and
    without more than 200 MB above the most memory that this process has had before.
    """
    read()
    originals = {path: path.read_bytes() for path in folder.iterdir()}
    before, refused, slowest = peak_memory(), 0, 0.0
    for number in range(MUTANTS):
        path, original = chance.choice([*originals.items()])
        replace(path, mutated(original, chance))
        begin = time.process_time()
        try:
            read()
        except (UserError, RunError) as error:
            assert str(folder) in str(error)
            refused += 1
        except BaseException as error:
            error.add_note(f"reading mutant {number}, which is still in {path}")
            raise
        seconds, grown = time.process_time() - begin, peak_memory() - before
        assert seconds < MOST_SECONDS, f"mutant {number}, {path}, takes {seconds:.1f} s"
        assert grown < MOST_BYTES, f"mutant {number}, {path}, fills the memory"
        slowest = max(slowest, seconds)
        replace(path, original)
    print(
        f"{folder.name}: {MUTANTS} mutants, {refused} refused, at most {slowest:.3f} s and "
        f"{grown / 1e6:.0f} MB"
    )


def replace(path: Path, data: bytes) -> None:
    path.unlink()  # a new file is written five times faster than an old one
    path.write_bytes(data)


def mutated(data: bytes, chance: Random) -> bytes:
    """The same file with damage to its bytes, or to what they mean, with the right checksums."""
    if chance.random() < 0.5:
        if data.startswith(b"PK"):
            return in_archive(data, chance)
        if data.startswith(b"{"):
            return in_json(data, chance)
        if data[8:9] == b"{":
            return in_safetensors(data, chance)
    for _ in range(chance.randint(1, 3)):
        data = damaged(data, chance)
    return data


def in_archive(data: bytes, chance: Random) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = chance.choice([*members])
    members[name] = mutated(members[name], chance)
    with zipfile.ZipFile(result := io.BytesIO(), "w") as archive:
        for name, member in members.items():
            archive.writestr(name, member)
    return result.getvalue()


def in_safetensors(data: bytes, chance: Random) -> bytes:
    end = 8 + int.from_bytes(data[:8], "little")
    header = in_json(data[8:end], chance)
    return len(header).to_bytes(8, "little") + header + data[end:]


def in_json(data: bytes, chance: Random) -> bytes:
    content = json.loads(data)
    change_entry(content, chance)
    return json.dumps(content).encode()


def change_entry(content: dict | list, chance: Random) -> None:
    """Replace, take away, double or exchange one entry, at any depth."""
    keys = [*content] if isinstance(content, dict) else range(len(content))
    key, other = chance.choices(keys, k=2)
    inner = content[key]
    if inner and isinstance(inner, dict | list) and chance.random() < 0.8:
        return change_entry(inner, chance)
    match chance.randrange(5):
        case 0:
            del content[key]
        case 1:
            content[key], content[other] = content[other], inner
        case 2 if isinstance(content, list):
            content.insert(other, inner)
        case 2:
            content["type"] = inner
        case _:
            content[key] = chance.choice(STRANGE)


def damaged(data: bytes, chance: Random) -> bytes:
    """The same bytes, but one piece is cut off, removed, doubled, overwritten or swapped."""
    start, stop = piece(data, chance)
    old, size = data[start:stop], stop - start
    match chance.randrange(9):
        case 0:
            return data[:start]
        case 1:
            a, b, c, d = sorted([start, stop, *piece(data, chance)])
            return data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:]
        case 2:
            new = b""
        case 3:
            new = old + old
        case 4:
            bit = 1 << chance.randrange(8)
            new = bytes([byte ^ bit for byte in old[:1]]) + old[1:]
        case 5:
            new = chance.randbytes(size)
        case 6:
            new = chance.choice(SYNTAX)
        case _:
            number = chance.choice([1, -1]) * chance.choice(EDGES)
            new = (number % 256**size).to_bytes(size, "little")
    return data[:start] + new + data[stop:]


def piece(data: bytes, chance: Random) -> tuple[int, int]:
    """Where a piece begins and ends: often near the beginning, where headers are, and a number."""
    start = chance.randrange(chance.randrange(len(data) + 1) + 1)
    start -= chance.choice([0, start % 4])
    return start, start + chance.choice([1, 2, 4, 4, 8, chance.randrange(200)])
