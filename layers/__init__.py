"""One file per layer: its forward and its backward pass, on arrays of yours as on a model's.

    x, dout = np.random.default_rng(0).standard_normal((2, 8, 16))
    weight, bias = np.ones(16), np.zeros(16)
    out, mean, rstd = np.empty_like(x), np.empty(8), np.empty(8)
    layernorm_forward(out, mean, rstd, x, weight, bias)
    dx, dweight, dbias = np.empty_like(x), np.empty_like(weight), np.empty_like(bias)
    layernorm_backward(dx, dweight, dbias, dout, x, weight, mean, rstd)

Outputs come first, then what is saved for the backward pass, then inputs, then parameters. Their
shapes are in each function's docstring, and any float type will do.
"""

import own_imports
