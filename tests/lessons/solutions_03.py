"""What a learner may write in lesson 03, right and wrong."""


def linear_dx(dout, x, weight, bias):
    return dout @ weight


def linear_dweight(dout, x, weight, bias):
    return dout.T @ x


def linear_dbias(dout, x, weight, bias):
    return dout.sum(axis=0)


def linear_dx_transposed(dout, x, weight, bias):
    return (dout @ weight).T


def linear_dweight_transposed(dout, x, weight, bias):
    return x.T @ dout


def linear_dweight_mean(dout, x, weight, bias):
    return (dout.T @ x) / x.shape[0]


def linear_dbias_over_outputs(dout, x, weight, bias):
    return dout.sum(axis=1)


def linear_dbias_mean(dout, x, weight, bias):
    return dout.mean(axis=0)


MISTAKES = [
    (linear_dx_transposed, "is it transposed?"),
    (linear_dweight_transposed, "its rows belong to the outputs"),
    (linear_dweight_mean, "what they ask of it adds up: sum"),
    (linear_dbias_mean, "what they ask of it adds up: sum"),
    (linear_dbias_over_outputs, "Each output has a bias of its own"),
]
