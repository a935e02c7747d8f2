"""What a learner may write in lesson 00, right and wrong."""

import math

import numpy as np


def element_strides(shape):
    strides = np.ones(len(shape), int)
    for axis in range(len(shape) - 2, -1, -1):
        strides[axis] = strides[axis + 1] * shape[axis + 1]
    return strides


def views(flat, shapes):
    sizes = [int(np.prod(shape)) for shape in shapes.values()]
    parts = np.split(flat, np.cumsum(sizes)[:-1])
    return {name: part.reshape(shapes[name]) for name, part in zip(shapes, parts, strict=True)}


def clip(flat, max_norm):
    norm = np.linalg.norm(flat)
    flat *= min(1.0, max_norm / norm)
    return norm


def split_qkv(qkv, num_heads):
    q, k, v = np.split(qkv, 3, axis=-1)
    shape = (*q.shape[:2], num_heads, q.shape[-1] // num_heads)
    return q.reshape(shape), k.reshape(shape), v.reshape(shape)


def element_strides_fortran(shape):
    return np.cumprod([1, *shape[:-1]])


def element_strides_with_its_own_size(shape):
    return np.cumprod(shape[::-1])[::-1]


def element_strides_next_size(shape):
    return (*shape[1:], 1)


def views_copied(flat, shapes):
    result, start = {}, 0
    for name, shape in shapes.items():
        size = math.prod(shape)
        result[name] = np.array(flat[start : start + size]).reshape(shape)
        start += size
    return result


def views_start_forgotten(flat, shapes):
    start = 0
    return {n: flat[start : start + math.prod(s)].reshape(s) for n, s in shapes.items()}


def views_start_not_added_up(flat, shapes):
    result, start = {}, 0
    for name, shape in shapes.items():
        size = math.prod(shape)
        result[name] = flat[start : start + size].reshape(shape)
        start = size
    return result


def views_without_a_return(flat, shapes):
    pass


def views_in_a_list(flat, shapes):
    return list(views(flat, shapes).values())


def clip_into_a_new_array(flat, max_norm):
    norm = np.linalg.norm(flat)
    if norm > max_norm:
        flat = flat * (max_norm / norm)
    return norm


def clip_lengthens(flat, max_norm):
    norm = np.linalg.norm(flat)
    flat *= max_norm / norm
    return norm


def clip_by_element(flat, max_norm):
    norm = np.linalg.norm(flat)
    flat[:] = flat.clip(-max_norm, max_norm)
    return norm


def clip_returns_the_new_norm(flat, max_norm):
    norm = np.linalg.norm(flat)
    if norm > max_norm:
        flat /= norm / max_norm
    return np.linalg.norm(flat)


def clip_to_length_one(flat, max_norm):
    norm = np.linalg.norm(flat)
    if norm > max_norm:
        flat *= 1 / norm
    return norm


def clip_without_the_root(flat, max_norm):
    norm = np.sum(flat**2)
    flat *= min(1.0, max_norm / norm)
    return norm


def split_qkv_heads_first(qkv, num_heads):
    B, T, _ = qkv.shape
    parts = qkv.reshape(B, T, num_heads, 3, -1)
    return parts[..., 0, :], parts[..., 1, :], parts[..., 2, :]


def split_qkv_one_array(qkv, num_heads):
    B, T, _ = qkv.shape
    return qkv.reshape(B, T, 3, num_heads, -1)


def split_qkv_copied(qkv, num_heads):
    B, T, _ = qkv.shape
    parts = np.moveaxis(qkv.reshape(B, T, 3, num_heads, -1), 2, 0)
    return tuple(np.ascontiguousarray(part).copy() for part in parts)


def split_qkv_head_size_first(qkv, num_heads):
    B, T, _ = qkv.shape
    parts = qkv.reshape(B, T, 3, -1, num_heads)
    return tuple(parts[:, :, i].transpose(0, 1, 3, 2) for i in range(3))


MISTAKES = [
    (element_strides_fortran, "as in Fortran"),
    (element_strides_with_its_own_size, "the product of the later sizes only"),
    (element_strides_next_size, "the product of all later sizes"),
    (views_copied, "they are copies"),
    (views_start_forgotten, "begin where the one before it stops"),
    (views_start_not_added_up, "add up the sizes of *all* tensors before it"),
    (views_without_a_return, "is a `return` missing?"),
    (views_in_a_list, "should return a dictionary"),
    (clip_into_a_new_array, "gives the name to a new array"),
    (clip_lengthens, "the scale is at most 1"),
    (clip_by_element, "which turns the arrow"),
    (clip_returns_the_new_norm, "Return the norm from before clipping"),
    (clip_to_length_one, "Make it max_norm long"),
    (clip_without_the_root, "its square root is missing"),
    (split_qkv_heads_first, "the axis of 3 comes before the heads"),
    (split_qkv_one_array, "should return three arrays"),
    (split_qkv_copied, "they are copies"),
    (split_qkv_head_size_first, "the last axis, the one with stride 1"),
]
