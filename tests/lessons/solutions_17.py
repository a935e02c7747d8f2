"""What a learner may write in lesson 17, right and wrong."""

import numpy as np


def in_tiles(function, x, size):
    out = np.zeros(len(x), x.dtype)
    done = 0
    while done < len(x):
        piece = x[done : done + size]
        out[done : done + len(piece)] = function(piece)
        done += len(piece)
    return out


def thread_slices(length, count):
    small, larger = divmod(length, count)
    slices, start = [], 0
    for i in range(count):
        stop = start + small + (i < larger)
        slices.append(slice(start, stop))
        start = stop
    return slices


def matmul_intensity(N, I, O, itemsize):  # noqa: E741
    moved = sum([N * I, I * O, O * N]) * itemsize
    return (N * O * I + N * O * I) / moved


def layernorm_counts(N, C, itemsize):
    operations = 1 + 1 + (1 + 1) + 1 + (1 + 1)
    passes = 1 + 2 + (2 + 1) + 2 + (2 + 2)
    array = N * C * itemsize
    return operations * N * C, passes * array, 2 * array


def roof(intensity, peak, bandwidth):
    return np.where(intensity * bandwidth < peak, intensity * bandwidth, peak)


def classifier_in_parts(x, weight, targets, rows):
    losses, dx, dweight = [], [], 0
    for start in range(0, len(x), rows):
        few, wanted = x[start : start + rows], targets[start : start + rows]
        logits = few @ weight.T
        exps = np.exp(logits - logits.max(axis=1)[:, None])
        probs = exps / exps.sum(axis=1)[:, None]
        for n, target in enumerate(wanted):
            losses.append(-np.log(probs[n, target]))
            probs[n, target] -= 1
        dlogits = probs / len(x)
        dx.append(dlogits @ weight)
        dweight = dweight + dlogits.T @ few
    return np.array(losses), np.concatenate(dx), dweight


def in_tiles_no_rest(function, x, size):
    out = np.zeros_like(x)
    for i in range(len(x) // size):
        out[i * size : (i + 1) * size] = function(x[i * size : (i + 1) * size])
    return out


def in_tiles_whole(function, x, size):
    return function(x)


def in_tiles_concatenated(function, x, size):
    return np.concatenate([function(x[i : i + size]) for i in range(0, len(x), size)])


def in_tiles_overwriting(function, x, size):
    for start in range(0, len(x), size):
        x[start : start + size] = function(x[start : start + size])
    return x


def thread_slices_no_rest(length, count):
    size = length // count
    return [slice(size * i, size * i + size) for i in range(count)]


def thread_slices_rest_at_end(length, count):
    size = length // count
    parts = [slice(size * i, size * i + size) for i in range(count)]
    parts[-1] = slice(size * (count - 1), length)
    return parts


def thread_slices_rounded_up(length, count):
    size = -(-length // count)
    return [slice(start, start + size) for start in range(0, length, size)]


def matmul_intensity_multiplications(N, I, O, itemsize):  # noqa: E741
    return N * I * O / (itemsize * (N * I + I * O + N * O))


def matmul_intensity_numbers(N, I, O, itemsize):  # noqa: E741
    return 2 * N * I * O / (N * I + I * O + N * O)


def matmul_intensity_parentheses(N, I, O, itemsize):  # noqa: E741
    return 2 * N * I * O / itemsize * (N * I + I * O + N * O)


def matmul_intensity_no_output(N, I, O, itemsize):  # noqa: E741
    return 2 * N * I * O / (N * I + I * O) / itemsize


def layernorm_counts_numbers(N, C, itemsize):
    return 7 * N * C, 12 * N * C, 2 * N * C


def layernorm_counts_twice(N, C, itemsize):
    return 7 * N * C, 13 * N * C * itemsize, 2 * N * C * itemsize


def layernorm_counts_reads(N, C, itemsize):
    return 7 * N * C, 7 * N * C * itemsize, 2 * N * C * itemsize


def roof_larger(intensity, peak, bandwidth):
    return np.where(intensity * bandwidth > peak, intensity * bandwidth, peak)


def roof_units(intensity, peak, bandwidth):
    return np.minimum(peak, bandwidth / intensity)


def classifier_in_parts_whole(x, weight, targets, rows):
    return classifier_in_parts(x, weight, targets, len(x))


def classifier_in_parts_mean_of_part(x, weight, targets, rows):
    losses, dx, dweight = [], [], 0
    for start in range(0, len(x), rows):
        n = slice(start, start + rows)
        part_losses, part_dx, part_dweight = classifier_in_parts(x[n], weight, targets[n], rows)
        losses.append(part_losses)
        dx.append(part_dx)
        dweight = dweight + part_dweight
    return np.concatenate(losses), np.concatenate(dx), dweight


def classifier_in_parts_of_the_sum(x, weight, targets, rows):
    losses, dx, dweight = classifier_in_parts(x, weight, targets, rows)
    return losses, dx * len(x), dweight * len(x)


def classifier_in_parts_last(x, weight, targets, rows):
    losses, dx, _ = classifier_in_parts(x, weight, targets, rows)
    last = slice((len(x) - 1) // rows * rows, None)
    share = len(x[last]) / len(x)
    return losses, dx, share * classifier_in_parts(x[last], weight, targets[last], rows)[2]


MISTAKES = [
    (in_tiles_no_rest, "The last tile is missing"),
    (in_tiles_whole, "should be 'a part of x', and is '"),
    (in_tiles_concatenated, "should be 'a part of x', and is '1.0 times x'"),
    (in_tiles_overwriting, "and is 'x itself, which is overwritten now'"),
    (thread_slices_no_rest, "The remainder is lost"),
    (thread_slices_rest_at_end, "all other threads wait for that one"),
    (thread_slices_rounded_up, "their count should be '9', and is '8'"),
    (matmul_intensity_multiplications, "2 (for each product, a multiplication and an addition)"),
    (matmul_intensity_numbers, "bytes are counted, not numbers) is missing"),
    (matmul_intensity_parentheses, "parentheses are missing"),
    (matmul_intensity_no_output, "the result has to be written, too"),
    (layernorm_counts_numbers, "itemsize is missing"),
    (layernorm_counts_twice, "which is read once"),
    (layernorm_counts_reads, "Most of them write an array, too"),
    (roof_larger, "the smaller one decides"),
    (roof_units, "Look at the units"),
    (classifier_in_parts_whole, "times all logits'"),
    (classifier_in_parts_mean_of_part, "divide by N"),
    (classifier_in_parts_of_the_sum, "those of the sum of the losses"),
    (classifier_in_parts_last, "that of the last part only"),
]
