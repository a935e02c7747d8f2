"""What a learner may write in lesson 12, right and wrong."""


def utf8(code_point):
    if code_point < 128:
        return [code_point]
    if code_point < 2048:
        return [192 + code_point // 64, 128 + code_point % 64]
    if code_point < 65536:
        return [224 + code_point // 4096, 128 + code_point // 64 % 64, 128 + code_point % 64]
    return [
        240 + code_point // 262144,
        128 + code_point // 4096 % 64,
        128 + code_point // 64 % 64,
        128 + code_point % 64,
    ]


def count_pairs(tokens):
    pairs = [(tokens[i], tokens[i + 1]) for i in range(len(tokens) - 1)]
    return {pair: pairs.count(pair) for pair in pairs}


def merge(tokens, pair, new):
    result = []
    for token in tokens:
        # A token that a merge has just made is new, and so never the left one of the pair.
        if result and (result[-1], token) == pair:
            result[-1] = new
        else:
            result.append(token)
    return result


def encode_word(word, ranks):
    pieces = [word[i : i + 1] for i in range(len(word))]
    while True:
        found = [
            (ranks[pieces[i] + pieces[i + 1]], i)
            for i in range(len(pieces) - 1)
            if pieces[i] + pieces[i + 1] in ranks
        ]
        if not found:
            break
        i = min(found)[1]
        pieces = [*pieces[:i], pieces[i] + pieces[i + 1], *pieces[i + 2 :]]
    return [ranks[piece] for piece in pieces]


def utf8_without_marks(code_point):
    if code_point < 128:
        return [code_point]
    if code_point < 2048:
        return [192 + code_point // 64, code_point % 64]
    if code_point < 65536:
        return [224 + code_point // 4096, code_point // 64 % 64, code_point % 64]
    first = 240 + code_point // 262144
    return [first, code_point // 4096 % 64, code_point // 64 % 64, code_point % 64]


def utf8_backwards(code_point):
    return list(reversed(chr(code_point).encode("utf-8")))


def utf8_with_upper_bits_left(code_point):
    if code_point < 128:
        return [code_point]
    if code_point < 2048:
        return [192 + code_point // 64, 128 + code_point % 64]
    if code_point < 65536:
        return [224 + code_point // 4096, 128 + code_point // 64, 128 + code_point % 64]
    middle = [128 + code_point // 4096, 128 + code_point // 64]
    return [240 + code_point // 262144, *middle, 128 + code_point % 64]


def count_pairs_apart(tokens):
    pairs = list(zip(tokens[::2], tokens[1::2], strict=False))
    return {pair: pairs.count(pair) for pair in pairs}


def count_pairs_without_order(tokens):
    pairs = [tuple(sorted(tokens[i : i + 2])) for i in range(len(tokens) - 1)]
    return {pair: pairs.count(pair) for pair in pairs}


def merge_by_one(tokens, pair, new):
    result = []
    for i in range(len(tokens)):
        result.append(new if tuple(tokens[i : i + 2]) == pair else tokens[i])
    return result


def merge_without_the_end(tokens, pair, new):
    result, i = [], 0
    while i < len(tokens) - 1:
        if (tokens[i], tokens[i + 1]) == pair:
            result.append(new)
            i += 2
        else:
            result.append(tokens[i])
            i += 1
    return result


def encode_word_longest_first(word, ranks):
    result = []
    while word:
        length = max(n for n in range(1, len(word) + 1) if word[:n] in ranks)
        result.append(ranks[word[:length]])
        word = word[length:]
    return result


def encode_word_leftmost_first(word, ranks):
    pieces = [word[i : i + 1] for i in range(len(word))]
    i = 0
    while i < len(pieces) - 1:
        if pieces[i] + pieces[i + 1] in ranks:
            pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]
            i = 0
        else:
            i += 1
    return [ranks[piece] for piece in pieces]


def encode_word_in_one_pass(word, ranks):
    pieces = [word[i : i + 1] for i in range(len(word))]
    i = 0
    while i < len(pieces) - 1:
        if pieces[i] + pieces[i + 1] in ranks:
            pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]
        i += 1
    return [ranks[piece] for piece in pieces]


def encode_word_joining_once(word, ranks):
    pieces = [word[i : i + 1] for i in range(len(word))]
    unions = [pieces[i] + pieces[i + 1] for i in range(len(pieces) - 1)]
    found = [(ranks[union], i) for i, union in enumerate(unions) if union in ranks]
    if found:
        i = min(found)[1]
        pieces[i : i + 2] = [unions[i]]
    return [ranks[piece] for piece in pieces]


MISTAKES = [
    (utf8_without_marks, "lack their mark"),
    (utf8_backwards, "the upper bits come first"),
    (utf8_with_upper_bits_left, "holds six bits only"),
    (count_pairs_apart, "belongs to two pairs"),
    (count_pairs_without_order, "A pair has an order"),
    (merge_by_one, "the right token of the pair is used up"),
    (merge_without_the_end, "The last token got lost"),
    (encode_word_longest_first, "You take the longest piece that fits"),
    (encode_word_leftmost_first, "You join the leftmost neighbours"),
    (encode_word_in_one_pass, "You go from left to right"),
    (encode_word_joining_once, "You stopped after one union"),
]
