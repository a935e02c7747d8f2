"""SentencePiece's rules by which characters of a text are replaced: precompiled_charsmap.

They are a double array, as the library darts-clone makes it, and behind it the texts that replace,
each ended by a zero. The array is a tree over the bytes of what is replaced, and each of its nodes
is a number of 32 bits:

    bits 0 to 7: the byte that leads to this node
    bit 8: a rule ends here; node `base` of its children holds the place of its text
    bits 10 to 30, times 256 if bit 9 is set: xor the node's own place, this is `base`, and the
        child for a byte is the node `base ^ byte`
    bit 31: this node is no node, but holds the place of a text

Sources: Aoe 1989, "An Efficient Digital Search Algorithm by Using a Double-Array Structure";
darts-clone, darts.h; SentencePiece, normalizer.cc.
"""

import re

import numpy as np

LONGEST_RULE = 1000  # bytes on either side; SentencePiece's own have at most 33
NOTHING = re.compile(b"(?!)")
IS_TEXT, ENDS_RULE, TIMES_256 = 1 << 31, 1 << 8, 1 << 9


class Charsmap:
    """Replaces characters: at each place by the rule for the longest text that begins there.

    Args:
        data: the content of precompiled_charsmap.

    Raises:
        ValueError: the rules are damaged.
    """

    def __init__(self, data: bytes):
        size = int.from_bytes(data[:4], "little")
        if size % 4 or len(data) < 4 + size:
            raise ValueError("its rules for characters are cut short")
        nodes, self.texts = np.frombuffer(data[4 : 4 + size], "<u4"), data[4 + size :]
        bases = (nodes >> 10 << ((nodes & TIMES_256) >> 6)) ^ np.arange(len(nodes))
        inner = nodes < IS_TEXT
        # Whatever is looked up, it is found inside.
        if not inner[:1].all() or (bases[inner] | 0xFF).max(initial=0) >= len(nodes):
            raise ValueError("its rules for characters lead nowhere")
        places = nodes[bases[inner & (nodes & ENDS_RULE > 0)]] & ~np.uint32(IS_TEXT)
        if not self.texts.endswith(b"\0") or places.max(initial=0) >= len(self.texts):
            raise ValueError("its rules for characters end nowhere")
        if max(map(len, self.texts.split(b"\0"))) > LONGEST_RULE:
            raise ValueError("its rules for characters are too long")
        self._nodes, self._bases = nodes.tolist(), bases.tolist()

    def replace(self, text: str, kept: re.Pattern[bytes] = NOTHING) -> str:
        """`text` with all rules applied, from left to right, but for what `kept` matches."""
        data, result, position = text.encode(), bytearray(), 0
        while position < len(data):
            length, place = self._longest_rule(data, position)
            if match := kept.match(data, position):
                length = len(match[0])
                result += match[0]
            elif length:
                result += self.texts[place : self.texts.index(b"\0", place)]
            else:
                result.append(data[position])
            position += length or 1
        return result.decode(errors="replace")

    def _longest_rule(self, data: bytes, start: int) -> tuple[int, int]:
        """How many bytes from `start` on it replaces, 0 if there is none, and where its text is."""
        nodes, bases = self._nodes, self._bases
        base, length, place = bases[0], 0, 0
        for end, byte in enumerate(data[start : start + LONGEST_RULE], start=1):
            node = base ^ byte
            if nodes[node] & (IS_TEXT | 0xFF) != byte:
                break
            base = bases[node]
            if nodes[node] & ENDS_RULE:
                length, place = end, nodes[base] & ~IS_TEXT
        return length, place
