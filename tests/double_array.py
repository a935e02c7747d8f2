"""Rules for characters, in arrays as SentencePiece has them but easier to read."""

import struct


def charsmap(rules: dict[bytes, bytes], times_256: bool = False) -> bytes:
    """The content of precompiled_charsmap, with 256 places for the children of each node."""
    texts, bases, nodes = b"", {}, {}
    prefixes = {key[:end] for key in rules for end in range(len(key) + 1)}
    for number, prefix in enumerate(sorted(prefixes), start=1):
        bases[prefix] = number * 1024
    places = {prefix: bases[prefix[:-1]] ^ prefix[-1] if prefix else 0 for prefix in prefixes}
    for prefix, place in places.items():
        offset = place ^ bases[prefix]
        far = times_256 and offset % 256 == 0
        nodes[place] = offset << 2 | 1 << 9 if far else offset << 10
        nodes[place] |= (prefix[-1] if prefix else 0) | (prefix in rules) << 8
        if prefix in rules:
            nodes[bases[prefix]] = 1 << 31 | len(texts)
            texts += rules[prefix] + b"\0"
    array = [nodes.get(place, 0) for place in range(1024 * (len(prefixes) + 1))]
    return struct.pack(f"<I{len(array)}I", 4 * len(array), *array) + texts
