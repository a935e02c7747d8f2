"""gradcheck passes what is right, in all ways to ask it; what is wrong is in test_mistakes.py."""

import re
from math import prod

import numpy as np
import pytest
from test_mistakes import plain_attention, plain_gelu, plain_linear

from errors import UserError
from gradcheck import check, check_layer, check_model, print_table
from layers.cases import find_layers
from layers.embedding import embedding_backward
from layers.gelu import gelu_backward
from layers.layernorm import layernorm_backward
from models import FAMILIES


@pytest.mark.parametrize("name", find_layers())
def test_every_layer_passes(name):
    results = check_layer(name)
    assert results
    assert all(result.ok for result in results)


@pytest.mark.parametrize(
    ("name", "config"), [(name, config) for name in FAMILIES for config in FAMILIES[name].small]
)
def test_the_whole_model_passes(name, config):
    results = check_model(FAMILIES[name], config)
    assert [(result.tensor.split()[-1], result.elements) for result in results] == [
        (name, min(24, prod(shape))) for name, shape in config.param_shapes().items()
    ]
    assert all(result.ok for result in results)


@pytest.mark.parametrize(
    ("name", "layer", "caught", "before"),
    [("gpt2", "gelu", "fcw", "lnfw"), ("llama2", "rope", "wk", "rmsfw")],
)
def test_a_wrong_layer_is_caught_in_the_whole_model(monkeypatch, name, layer, caught, before):
    def without_derivative(dx, dout, *_):
        dx[...] = dout

    monkeypatch.setattr(f"models.{name}.{layer}_backward", without_derivative)
    family = FAMILIES[name]
    wrong = {
        result.tensor.split()[-1]
        for result in check_model(family, family.small[0])
        if not result.ok
    }
    assert caught in wrong
    assert before not in wrong  # backward comes to it before the mistake


# --- for notebooks: plain functions, the table, the picture ---


def test_a_learners_own_functions():
    inputs = {"x": np.array([0.3, -1.2]), "a": np.array(2.0)}

    def backward(dout, x, a):
        return {"x": dout * a * np.cos(a * x), "a": np.sum(dout * x * np.cos(a * x))}

    results = check(lambda x, a: np.sin(a * x), backward, inputs)
    assert [(result.tensor, result.elements, result.ok) for result in results] == [
        ("x", 2, True),
        ("a", 1, True),
    ]
    wrong = check(
        lambda x, a: np.sin(a * x), lambda dout, x, a: {"x": dout * np.cos(a * x)}, inputs
    )
    assert [result.ok for result in wrong] == [False]


@pytest.mark.parametrize("dtype", [int, np.float32])
def test_a_learners_arrays_of_any_type_in_memory_used_again(dtype):
    out = np.empty(3)

    def forward(x):
        np.sin(x, out=out)
        return out

    inputs = {"x": np.array([0, 1, 2], dtype)}
    (result,) = check(forward, lambda dout, x: {"x": dout * np.cos(x)}, inputs)
    assert result.ok


def test_an_element_that_is_left_out_is_caught_in_the_whole_model(monkeypatch):
    def without_the_last_row(dweight, dout, tokens, accumulate):
        embedding_backward(dweight[:-1], dout, tokens, accumulate)
        dweight[-1] = np.nan

    monkeypatch.setattr("models.gpt2.embedding_backward", without_the_last_row)
    family = FAMILIES["gpt2"]
    results = check_model(family, family.small[0], elements=1)
    assert [result.tensor.split()[-1] for result in results if not result.ok] == ["wte"]


def test_a_gradient_of_the_wrong_shape_is_named():
    with pytest.raises(
        ValueError, match=r"gradient of x has shape \(1,\), but x itself has \(2,\)"
    ):
        check(lambda x: 2 * x, lambda dout, x: {"x": dout[:1]}, {"x": np.ones(2)})


# --- a layer with functions, arrays and sizes of one's own ---


def printed(capsys, *args, **kwargs):
    """Whether a layer's table says that all passed, and its lines."""
    passed = print_table(check_layer(*args, **kwargs))
    return passed, capsys.readouterr().out.splitlines()


def test_what_a_function_does_not_know_is_told_after_what_it_can_do(capsys):
    def backward(dq, dk, dv, dout, q, k, v, out, lse):
        plain_attention(None)(dq, dk, dv, dout, q, k, v, out, lse)

    passed, lines = printed(capsys, "attention", backward=backward)
    assert not passed
    rows = [line for line in lines if line.endswith("ok")]
    assert len(rows) == 18
    assert lines[1:19] == rows
    assert re.fullmatch("attention B=2 T=5 H=6 D=2 K=3 +NOT DONE", lines[19])
    assert [re.split(" {2,}", line)[0] for line in lines[20:23]] == [
        "attention B=2 T=5 H=3 D=4 K=3 window=1",
        "attention B=2 T=9 H=4 D=2 K=2 window=4",
        "attention B=2 T=5 H=3 D=4 K=3 scale=0.3",
    ]
    assert lines[23].startswith(
        "your function cannot do attention with fewer heads of keys than of queries "
        "(attention B=2 T=5 H=6 D=2 K=3): it stopped with ValueError: operands could not be"
    )
    assert "in backward, at: scores = " in lines[23]
    assert lines[24] == (
        "your function cannot do attention with a window (attention B=2 T=5 H=3 D=4 K=3 window=1): "
        "it takes no `window`"
    )
    assert lines[27:] == ["18 gradients agree with central differences, and not all could be had"]


def test_a_function_that_can_only_assign(capsys):
    def backward(dx, dweight, dbias, dout, x, weight):
        plain_linear(None)(dx, dweight, dbias, dout, x, weight)

    passed, lines = printed(capsys, "linear", backward=backward, N=5, I=3, O=4)
    assert passed
    assert [line.split()[-1] for line in lines[1:4]] == ["ok"] * 3
    assert lines[4:] == [
        "your function takes no `accumulate`: whether it can add up was not checked",
        "all 3 gradients agree with central differences",
    ]


def test_a_forward_function_without_start_and_padding_is_as_good():
    def forward(out, lse, q, k, v):
        T, D = q.shape[1], q.shape[3]
        scores = np.einsum("bthd,bshd->bhts", q, k) / np.sqrt(D)
        probs = np.exp(np.where(np.tri(T, dtype=bool), scores, -np.inf))
        total = probs.sum(axis=-1, keepdims=True)
        lse[...] = np.log(total[..., 0])
        out[...] = np.einsum("bhts,bshd->bthd", probs / total, v)

    assert all(r.ok for r in check_layer("attention", forward=forward, B=2, T=5, H=3, K=3, D=4))
    (result,) = check_layer(
        "attention", forward=forward, B=1, T=3, H=1, K=1, D=2, start=0, padding=[1]
    )
    assert not result.ok
    assert "it takes no `padding`" in result.note


def test_a_function_that_writes_nothing_or_takes_too_much(capsys):
    def rebinds(dx, dout, x):
        dx = plain_gelu(None)(dx.copy(), dout, x)

    passed, lines = printed(capsys, "gelu", backward=rebinds, N=2, C=3)
    assert not passed
    assert lines[2:] == [
        "nothing was written to dx: assign its elements, as in dx[...] = ...",
        "1 of 1 gradients are wrong: gelu N=2 C=3 x",
    ]

    passed, lines = printed(capsys, "gelu", backward=lambda dx, dout, x, scale: None)
    assert not passed
    assert "missing 1 required positional argument: 'scale'" in lines[2]


def test_a_function_may_compute_in_the_memory_of_what_it_is_given():
    def backward(dx, dout, x):
        plain_gelu(None)(dx, dout, x)
        dout[...] = np.nan

    assert all(result.ok for result in check_layer("gelu", backward=backward))


def test_what_is_wrong_is_named_at_the_end(capsys):
    passed, lines = printed(capsys, "linear", backward=plain_linear("mean for sum"), N=6, I=4, O=5)
    assert not passed
    assert lines[-1] == "1 of 3 gradients are wrong: linear N=6 O=5 I=4 bias"


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-7), (np.float32, 1e-4)])
@pytest.mark.parametrize("name", find_layers())
def test_any_layer_in_either_type(name, dtype, tolerance):
    results = check_layer(name, dtype=dtype)
    assert all(result.ok and result.tolerance == tolerance for result in results)
    # Computed in that type: a float32 leaves some digits less.
    assert (max(result.error for result in results) > 1e-9) == (dtype == np.float32)


def test_arrays_of_ones_own_are_what_is_checked():
    rng = np.random.default_rng(5)
    x, weight, bias, dout = (rng.standard_normal(shape) for shape in ((4, 6), 6, 6, (4, 6)))
    seen = []

    def backward(dx, dweight, dbias, dout, x, weight, mean, rstd, accumulate):
        seen.append([dout.copy(), x.copy(), weight.copy(), x.dtype])
        layernorm_backward(dx, dweight, dbias, dout, x, weight, mean, rstd, accumulate)

    arrays = {"x": x.tolist(), "weight": weight, "bias": bias, "dout": dout}
    before = {name: np.array(array) for name, array in arrays.items()}
    results = check_layer("layernorm", backward=backward, dtype=np.float32, **arrays)
    assert [(r.tensor, r.elements, r.ok) for r in results] == [
        ("layernorm N=4 C=6 x", 24, True),
        ("layernorm N=4 C=6 weight", 6, True),
        ("layernorm N=4 C=6 bias", 6, True),
    ]
    for given, of_mine in zip(seen[0], (dout, x, weight), strict=False):
        np.testing.assert_array_equal(given, of_mine.astype(np.float32))
    assert seen[0][-1] == np.float32
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, before[name])


@pytest.mark.parametrize(
    ("name", "case", "complaint"),
    [
        ("atention", {}, "there is no layer 'atention'; layers/ has attention, classifier, drop"),
        ("gelu", {"dtype": np.float16}, "in float32 or float64, not in float16"),
        ("gelu", {"N": 3}, "gelu needs a size for C, as in C=4, or an array with it"),
        ("gelu", {"N": 3, "C": 0}, "gelu: C must be a whole number from 1 up, not 0"),
        ("gelu", {"N": 3, "F": 4}, "gelu has no 'F'; it has out, x, dout, N, C"),
        ("gelu", {"x": np.ones(3)}, "gelu: x has shape (3,), and should have (N, C)"),
        (
            "layernorm",
            {"x": np.ones((4, 6)), "weight": np.ones(5), "bias": np.ones(6)},
            "layernorm: weight has shape (5,), and should have (6,): the other arguments' (C,)",
        ),
        ("attention", {"B": 1, "T": 2, "H": 3, "K": 2, "D": 2}, "2 heads of keys cannot serve 3"),
        (
            "rope",
            {"B": 1, "T": 2, "H": 3, "D": 5},
            "should have (2, 5/2): the other arguments' (T,",
        ),
    ],
)
def test_a_case_that_cannot_be_is_one_sentence(name, case, complaint):
    with pytest.raises(UserError, match=re.escape(complaint)):
        check_layer(name, **case)


# --- the program ---


def test_the_program(program):
    status, out, err = program("gradcheck", "gelu", "linear")
    assert (status, err) == (0, "")
    assert "largest relative error" in out
    assert "gelu N=3 C=5 x" in out
    assert "WRONG" not in out


def test_the_program_says_what_is_wrong(program, monkeypatch):
    mutant = plain_gelu("no factor 3")
    mutant.__doc__ = gelu_backward.__doc__  # which says what to draw
    monkeypatch.setattr("layers.gelu.gelu_backward", mutant)
    status, out, err = program("gradcheck", "gelu")
    assert status == 1
    assert "WRONG" in out
    assert "gradients are wrong" in err


def test_an_unknown_layer(program):
    status, _, err = program("gradcheck", "conv2d")
    assert status == 2
    assert "conv2d" in err
    assert "attention" in err


def test_the_v_shaped_curve(program, tmp_path):
    status, _, _ = program("gradcheck", "gelu", "--plot", str(tmp_path / "v.png"))
    assert status == 0
    assert (tmp_path / "v.png").read_bytes().startswith(b"\x89PNG")
    errors = [check_layer("gelu", h=h)[1].error for h in (1e-1, 1e-5, 1e-11)]
    assert errors[1] < errors[0] / 1e4
    assert errors[1] < errors[2] / 1e2
    status, _, err = program("gradcheck", "--plot", str(tmp_path / "v.png"))
    assert status == 2
    status, _, err = program("gradcheck", "gelu", "--plot", str(tmp_path / "v.xyz"))
    assert status == 2
    assert "png" in err
