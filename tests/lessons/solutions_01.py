"""What a learner may write in lesson 01, right and wrong."""

import numpy as np


def central_difference(f, x, h):
    return (f(x + h) - f(x - h)) / (2 * h)


def best_step(eps, f, f3):
    return np.cbrt(1.5 * eps * np.abs(f / f3))


def numerical_gradient(f, x, dout, h):
    slopes = []
    for i in range(x.size):
        step = np.zeros(x.size)
        step[i] = h
        step = step.reshape(x.shape)
        slopes.append(np.vdot(dout, f(x + step)) - np.vdot(dout, f(x - step)))
    return np.array(slopes).reshape(x.shape) / (2 * h)


def relative_error(gradient, expected, floor=1e-2):
    largest = np.max(np.abs([gradient, expected]))
    return np.max(np.abs(gradient - expected)) / np.maximum(largest, floor)


def graph_backward(dout, x, y):
    slope = 1 / np.cosh(x * y) ** 2
    return dout * (np.tanh(x * y) + x * y * slope), dout * x**2 * slope


def central_difference_forward(f, x, h):
    return (f(x + h) - f(x)) / h


def central_difference_backward(f, x, h):
    return (f(x) - f(x - h)) / h


def central_difference_over_h(f, x, h):
    return (f(x + h) - f(x - h)) / h


def central_difference_brackets(f, x, h):
    return (f(x + h) - f(x - h)) / 2 * h


def central_difference_half_steps(f, x, h):
    return (f(x + 0.5 * h) - f(x - 0.5 * h)) / h


def best_step_equal_parts(eps, f, f3):
    return np.cbrt(3 * eps * abs(f) / abs(f3))


def best_step_square_root(eps, f, f3):
    return np.sqrt(1.5 * eps * abs(f / f3))


def best_step_cubed(eps, f, f3):
    return 1.5 * eps * abs(f / f3)


def numerical_gradient_without_dout(f, x, dout, h):
    return numerical_gradient(f, x, 1 + 0 * dout, h)


def numerical_gradient_forward(f, x, dout, h):
    dx, before = np.empty_like(x), f(x)
    for i in range(x.size):
        x.flat[i] += h
        dx.flat[i] = np.sum(dout * (f(x) - before)) / h
        x.flat[i] -= h
    return dx


def numerical_gradient_not_put_back(f, x, dout, h):
    dx = np.empty_like(x)
    for i in range(x.size):
        middle = x.flat[i]
        x.flat[i] = middle + h
        above = f(x)
        x.flat[i] = middle - h
        dx.flat[i] = np.sum(dout * (above - f(x))) / (2 * h)
    return dx


def numerical_gradient_second_step_too_short(f, x, dout, h):
    dx = np.empty_like(x)
    for i in range(x.size):
        x.flat[i] += h
        above = f(x)
        x.flat[i] -= h
        dx.flat[i] = np.sum(dout * (above - f(x))) / (2 * h)
    return dx


def numerical_gradient_by_rows(f, x, dout, h):
    dx = np.empty_like(x)
    for i in range(len(x)):
        middle = x[i].copy()
        x[i] = middle + h
        above = f(x)
        x[i] = middle - h
        dx[i] = np.sum(dout * (above - f(x))) / (2 * h)
        x[i] = middle
    return dx


def numerical_gradient_over_h(f, x, dout, h):
    return 2 * numerical_gradient(f, x, dout, h)


def numerical_gradient_not_divided(f, x, dout, h):
    return h * numerical_gradient(f, x, dout, h)


def relative_error_by_element(gradient, expected, floor):
    largest = np.maximum(np.maximum(np.abs(gradient), np.abs(expected)), floor)
    return np.max(np.abs(gradient - expected) / largest)


def relative_error_without_floor(gradient, expected, floor):
    return np.max(np.abs(gradient - expected)) / np.max(np.abs([gradient, expected]))


def relative_error_of_the_difference_alone(gradient, expected, floor):
    return np.max(np.abs(gradient - expected))


def relative_error_of_expected_alone(gradient, expected, floor):
    return np.max(np.abs(gradient - expected)) / np.maximum(np.max(np.abs(expected)), floor)


def relative_error_mean(gradient, expected, floor):
    largest = np.maximum(np.max(np.abs([gradient, expected])), floor)
    return np.mean(np.abs(gradient - expected)) / largest


def relative_error_signed(gradient, expected, floor):
    largest = np.maximum(np.max(np.abs([gradient, expected])), floor)
    return np.max(gradient - expected) / largest


def graph_backward_direct_path_only(dout, x, y):
    _, dy = graph_backward(dout, x, y)
    return dout * np.tanh(x * y), dy


def graph_backward_inner_path_only(dout, x, y):
    dx, dy = graph_backward(dout, x, y)
    return dx - dout * np.tanh(x * y), dy


def graph_backward_tanh_forgotten(dout, x, y):
    return dout * np.tanh(x * y) + dout * x * y, dout * x**2


def graph_backward_factors_swapped(dout, x, y):
    slope = 1 / np.cosh(x * y) ** 2
    return dout * (np.tanh(x * y) + x**2 * slope), dout * x * y * slope


def graph_backward_without_dout(dout, x, y):
    return graph_backward(1.0, x, y)


MISTAKES = [
    (central_difference_forward, "That is the forward difference"),
    (central_difference_backward, "That is the backward difference"),
    (central_difference_over_h, "you divided by h"),
    (central_difference_brackets, "Brackets"),
    (central_difference_half_steps, "Go h to each side"),
    (best_step_equal_parts, "the two parts of the error are equal"),
    (best_step_square_root, "belongs to the forward difference"),
    (best_step_cubed, "take the third root"),
    (numerical_gradient_without_dout, "multiply by dout before the sum"),
    (numerical_gradient_forward, "That is the forward difference"),
    (numerical_gradient_not_put_back, "put it back"),
    (numerical_gradient_second_step_too_short, "the lower point is 2h away"),
    (numerical_gradient_by_rows, "You moved whole rows at once"),
    (numerical_gradient_over_h, "1/2 is missing"),
    (numerical_gradient_not_divided, "1/h is missing"),
    (relative_error_by_element, "You divided element by element"),
    (relative_error_without_floor, "`floor` is missing"),
    (relative_error_of_the_difference_alone, "That is the difference itself"),
    (relative_error_of_expected_alone, "Take that of both arrays"),
    (relative_error_mean, "You took the mean"),
    (relative_error_signed, "take absolute values first"),
    (graph_backward_direct_path_only, "dx has only its direct path"),
    (graph_backward_inner_path_only, "dx has only the path by u"),
    (graph_backward_tanh_forgotten, "multiply by 1 - t^2"),
    (graph_backward_factors_swapped, "the other way round"),
    (graph_backward_without_dout, "dout is missing"),
]
