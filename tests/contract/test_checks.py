"""Every public function that takes a layer refuses the same bad inputs, with ValueError or TypeError."""

import inspect

import pytest
import torch

from mlcomp.checks import check_choice, check_codes, check_dtype, check_interval, check_positive, check_whole
from mlcomp.formats.additive_codebook import AdditiveCodes
from mlcomp.quant.scalar.codebook import Codebook
from tests.contract.public import public_functions

OUT, INP = 4, 16
NAN, INF = float("nan"), float("inf")


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def layer() -> dict[str, torch.Tensor]:
    """A good weight, with the good values of all arguments that have no default."""
    x = drawn(INP, 40)
    return {
        "weight": drawn(OUT, INP),
        "weight_row": drawn(INP),
        "row": drawn(INP),
        "target": drawn(INP),
        "hessian": 2 * x @ x.T,
        "compressed": drawn(OUT, INP),
        "corrected": drawn(OUT, INP),
        "pruned": drawn(OUT, INP),
        "inputs": x,
        "targets": drawn(OUT, 40),
        "input_mean": x.mean(1),
        "input_norm": x.norm(dim=1),
        "mask": drawn(OUT, INP) > 0,
        "removed": drawn(OUT, INP) > 0,
        "columns": torch.arange(INP),
        "permutation": torch.arange(INP).flip(0),
        "codebook": Codebook(torch.tensor([-1.0, 0.0, 1.0]), torch.tensor([-0.5, 0.5])),
        "generator": torch.Generator().manual_seed(0),
        "between": torch.ones(INP, 3),
        "box": torch.ones(INP),
        "bits": 3,
        "group_size": 8,
        "sparsity": 0.5,
        "pattern": (2, 4),
        "order": "natural",
        "damp": 0.01,
        "start": AdditiveCodes(torch.ones(OUT, 4, 2, dtype=torch.uint8), drawn(2, 4, 4), torch.ones(OUT)),
        "dim": 4,
        "books": 2,
        "code_bits": 2,
        "entries": 4,
        "parts": 2,
        "stages": 2,
        "branching": 2,
        "remove": 3,
        "levels": 4,
    }


def changed(x: torch.Tensor, value: float) -> torch.Tensor:
    """Return a copy with one entry changed."""
    copy = x.clone()
    copy.view(-1)[1] = value
    return copy


def bad_tensors(x: torch.Tensor) -> list:
    """Return what no tensor of numbers may be: another type, shape or dtype, empty, NaN or infinite."""
    others = [x.tolist(), None, x[..., None], x[0], x[:0], x.long(), x.to(torch.complex64)]
    return [*others, changed(x, NAN), changed(x, INF)]


def bad_hessians(h: torch.Tensor, alone: bool) -> list:
    negative = h.clone()
    negative[2, 2] = -1
    # By itself a smaller Hessian is another good one.
    return [*bad_tensors(h), h[:, :-1], changed(h, 1e3), negative, h.half(), *([] if alone else [h[:-1, :-1]])]


WHOLE = [0, -1, 2.5, True, "4", NAN]
SHARE = [-0.1, 1.5, NAN, True, "0.5"]
PATTERNS = [(3, 2), (2,), [2, 4], (-1, 4), (2.0, 4), (True, 4), (0, 0), "2:4"]
BAD = {
    "bits": [*WHOLE, 9],
    "group_size": [*WHOLE, 5],
    "dim": [*WHOLE, 5, None],
    "width": [*WHOLE, 5],
    "levels": [*WHOLE, 1, 257],
    "remove": [*WHOLE[1:], INP + 1],
    "sparsity": SHARE,
    "row_cap": SHARE,
    "pattern": PATTERNS,
    "damp": [-0.1, NAN, INF, True, "0"],
    "learning_rate": [-0.1, NAN, INF],
    "rho": [0.0, -1.0, NAN],
    "epsilon": [0.0, -1.0, NAN, INF],
    "threshold": [0.0, -1.0, NAN],
    "steps": WHOLE[1:],
    "sweeps": WHOLE[1:],
    "max_steps": WHOLE[1:],
    "max_bytes": [0],
    "max_rounds": WHOLE[1:],
    "code_bits": [*WHOLE, 9],
    "tau": [-0.1, 1.0, NAN, True, "0"],
    "start": ["codes", 3],
    "dtype": [torch.int8, "fp16", None],
    "scale_dtype": [torch.int8, torch.float64, "fp16"],
    **dict.fromkeys(("block_size", "mask_block", "statistic_rows", "batch_size", "max_nodes"), WHOLE),
    **dict.fromkeys(("entries", "parts", "stages", "branching", "statistic_bits", "books", "beam"), WHOLE),
}
TENSORS = ("weight", "weight_row", "row", "target", "compressed", "corrected", "pruned", "input_mean", "input_norm")
TENSORS = (*TENSORS, "inputs", "targets", "between", "box")


def public() -> dict[str, object]:
    """Every public function whose weight is a matrix (out, inp) or whose Hessian is (inp, inp)."""
    found = {}
    for home, name, function in public_functions():
        parameters = inspect.signature(function).parameters
        kinds = {n: getattr(p.annotation, "dim_str", None) for n, p in parameters.items()}
        if kinds.get("weight") == "out inp" or kinds.get("hessian") == "inp inp":
            found[f"{home}.{name}"] = function
    return found


FUNCTIONS = public()


def good_arguments(function) -> dict:
    """Return arguments that the function accepts: what has no default, and one of sparsity and pattern."""
    known = layer()
    parameters = inspect.signature(function).parameters
    needed = {n for n, p in parameters.items() if p.default is p.empty} | (
        {"sparsity", "generator", "code_bits"} & set(parameters)
    )
    return {name: known[name] for name in parameters if name in needed}


def bad_calls(function):
    """Yield the name of an argument and a whole set of arguments in which it alone is bad."""
    parameters, good = inspect.signature(function).parameters, good_arguments(function)
    for name, parameter in parameters.items():
        without = good
        if name == "hessian":
            values = bad_hessians(good[name], alone=not {"weight", "weight_row", "row", "target"} & set(parameters))
        elif name in TENSORS and name in good:
            values = bad_tensors(good[name])
        elif name in ("mask", "removed"):
            mask = layer()["mask"]
            values = [mask.tolist(), mask.float(), mask[:, 1:], mask[0]]
            without = {n: v for n, v in good.items() if n != "sparsity"}
        elif parameter.annotation is str:
            values = ["nonsense", None, 3]
        else:
            values = BAD.get(name, [])
            if name == "pattern":
                without = {n: v for n, v in good.items() if n != "sparsity"}
        for value in values:
            yield name, {**without, name: value}


def test_the_functions_are_found():
    assert len(FUNCTIONS) > 40
    assert {
        "mlcomp.obs.exact_obs.exact_obs",
        "mlcomp.quant.rtn.rtn",
        "mlcomp.kernels.obq.obq",
        "mlcomp.quant.additive.aqlm.aqlm",
    } <= set(FUNCTIONS)


INTERPRETED = {"mlcomp.kernels.exact_obs.exact_obs", "mlcomp.kernels.obq.obq"}  # loops that take long without a GPU


@pytest.mark.parametrize("name", [pytest.param(f, marks=[pytest.mark.slow] * (f in INTERPRETED)) for f in FUNCTIONS])
def test_input_is_not_changed_and_bad_input_is_refused_by_a_clear_error(name, as_user):
    function = FUNCTIONS[name]
    good = good_arguments(function)
    before = {n: v.clone() for n, v in good.items() if isinstance(v, torch.Tensor)}
    function(**good)  # what follows would prove nothing if these were refused, too
    for n, v in before.items():
        torch.testing.assert_close(good[n], v, rtol=0, atol=0, msg=f"{n} was changed")
    wrong = []
    for argument, call in bad_calls(function):
        before = {n: v.clone() for n, v in call.items() if isinstance(v, torch.Tensor)}
        given = f"{argument}={str(call[argument])[:60]!r}"
        try:
            function(**call)
        except (ValueError, TypeError) as error:
            if argument not in str(error) and "must" not in str(error):
                wrong.append(f"{given}: the message does not say what is wrong: {error}")
        except Exception as error:
            wrong.append(f"{given}: {type(error).__name__}: {error}")
        else:
            wrong.append(f"{given}: accepted")
        for n, v in before.items():
            torch.testing.assert_close(call[n], v, rtol=0, atol=0, equal_nan=True)
    assert not wrong, "\n".join(wrong)


def test_whole_numbers(as_user):
    check_whole("n", 3, 3)
    check_whole("n", 3, 1, 3)
    for value in (0, 4, 2.0, True, "2", None, NAN):
        with pytest.raises(ValueError, match="n must be a whole number from 1 to 3, got"):
            check_whole("n", value, 1, 3)
    with pytest.raises(ValueError, match="n must be a whole number of at least 2, got 1"):
        check_whole("n", 1, 2)


@pytest.mark.parametrize(
    ("interval", "good", "bad"),
    [
        ("[0, 1]", (0, 0.5, 1), (-1e-9, 1 + 1e-9)),
        ("(0, 1]", (1e-300, 1.0), (0, 0.0, 1.1)),
        ("[0.5, 1)", (0.5, 0.999), (0.49, 1, 1.0)),
        ("[0, inf)", (0, 1e300), (-1, INF)),
        ("[0, inf]", (0, INF), (-INF,)),
    ],
)
def test_intervals(interval, good, bad, as_user):
    for value in good:
        check_interval("x", value, interval)
    for value in (*bad, NAN, None, "1", True, 1j):
        with pytest.raises(ValueError, match="x must lie in"):
            check_interval("x", value, interval)


def test_words_positive_numbers_and_dtypes(as_user):
    check_choice("order", "b", ("a", "b"))
    check_choice("order", "b", {"a": 1, "b": 2})
    with pytest.raises(ValueError, match="order must be one of a, b, got 'c'"):
        check_choice("order", "c", ("a", "b"))
    check_positive("mu", 1)
    for value in (0, -1.0, INF, NAN, True, "1", None):
        with pytest.raises(ValueError, match="mu must be positive and finite, got"):
            check_positive("mu", value)
    check_dtype("x", torch.int8, (torch.int8,))
    with pytest.raises(TypeError, match=r"x must be one of torch\.int8, torch\.int16, got torch\.float32"):
        check_dtype("x", torch.float32, (torch.int8, torch.int16))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.uint16])
def test_codes(dtype, as_user):
    codes = torch.tensor([0, 7, 8], dtype=dtype)
    check_codes("codes", codes, 8)
    check_codes("codes", codes[:0], 8)
    with pytest.raises(ValueError, match="codes must lie in 0 … 7, got 0 … 8"):
        check_codes("codes", codes, 7)
    for bad in (codes.float(), codes == 0, codes.tolist()):
        with pytest.raises(TypeError, match="codes must be"):
            check_codes("codes", bad, 8)
    with pytest.raises(ValueError, match="codes must lie in 0 … 7, got -1 … 3"):
        check_codes("codes", torch.tensor([-1, 3]), 7)
