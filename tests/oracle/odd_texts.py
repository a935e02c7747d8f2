"""Texts that are odd, but that every tokenizer must take."""

import random

# Characters of all kinds, but none that a library may not know yet.
KINDS = [
    "abcdefghijklmnopqrstuvwxyz",
    "ABCXYZ ",
    "0123456789",
    "½²Ⅷ٣४௧１𝟘𒐁①",  # numbers of other kinds
    " \t\n\r\x0b\x0c\x85\xa0\u1680\u2003\u2028\u202f\u3000",  # white space
    "\x00\x01\x1b\x1c\x1d\x1f\x7f\xad\u200b\u200d\u200e\u202e\u2060\ufeff\ufffd\uffff",
    "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~",
    "’“”«»…–—¡¿§¶†‰€£¥₿™©®°×÷±≠≤≥∑√∞∂∫",
    "éèüößñçåøæœłđİıſǅǆﬁﬀ",
    "e\u0301o\u0308\u0323a\u0323\u0308\u0344\u0340\u212b\u2126",  # what NFC composes or replaces
    "αβγΩάЖшщъЁѣ",
    "שלום\u05b8عربي\u0651\u064e",
    "हिन्दी\u094dதமிழ்ไทยสวัสดีລາວខ្មែរမြန်မာ\u0f0b\u0f40",
    "中文漢字かなカナ゛ｶﾞ한국어\u1100\u1161\u11a8𠀀𪚥",
    "😀😂🙏🏽👩‍👩‍👧🇩🇪☺️❤️\U0001f9ff",
    "\ue000\U000f0000\U0010ffff\U00050000",  # of nobody's, and of nobody yet
    "𝔘𝕬𝓐ℵℏªºʰʼ",
]
PIECES = ["'s", "'S", "'ll", "'LL", "'lL", "'re", "'ſ", "’s", "''t", "'d'm", " 'Ve", "it's", "I'M"]
PIECES += ["the", " The", "Hello", " naïve", "1234567", " 12", "3.14", "\r\n", "\n\n", "  ", "    "]
PIECES += ["def f(x):\n\treturn x\n", "<b>", "</b>", "https://a.b/c?d=e&f", "==", "----", "#!"]
RUNS = [*" \n\t\r\u3000aA1!'=", " \n", "\r\n", "ab", "é", "中"]


def odd_texts(count: int, marks: list[str], seed: int = 0) -> list[str]:
    """So many texts; in some are `marks`, whole, cut, or with other characters around them."""
    rng = random.Random(seed)

    def piece() -> str:
        kind = rng.randrange(10)
        if kind < 4:
            return "".join(rng.choices(rng.choice(KINDS), k=rng.randrange(1, 9)))
        if kind < 7:
            return rng.choice(PIECES)
        if kind < 8:  # a run
            return rng.choice(RUNS) * rng.randrange(1, 40)
        if kind < 9:
            return chr(rng.choice([rng.randrange(0x20, 0x250), rng.randrange(0x4E00, 0x9FA6)]))
        mark = rng.choice(marks)
        start, end = sorted(rng.choices(range(len(mark) + 1), k=2))
        return rng.choice([mark, mark, mark[start:end], mark.upper(), mark * 2, f"<{mark}>"])

    return ["".join(piece() for _ in range(rng.randrange(12))) for _ in range(count)]
