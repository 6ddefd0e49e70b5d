"""Graphs whose layers depend on each other in ways that memory and fusion have to respect."""

from __future__ import annotations

import gc

import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as PF
import numpy as np
import pytest

import nnabla_dqa as dqa
from nnabla_dqa.onednn import library
from nnabla_dqa.onednn.accelerate import accelerate

pytestmark = pytest.mark.skipif(bool(library.why_not()), reason=library.why_not())


def C(h, name, maps=4):
    return PF.convolution(h, maps, (3, 3), pad=(1, 1), name=name)


def B(h, name, batch_stat=True):
    return PF.batch_normalization(h, batch_stat=batch_stat, name=name)


def end(h):
    return F.mean(F.sin(h))


def cut(h):
    h.need_grad = False
    return h


def deep_normalizations(x):
    h = C(x, "a")
    for i in range(4):
        h = B(h, str(i), batch_stat=False)
    return end(C(h, "end"))


def sum_with_what_is_normalized(x):
    h = C(x, "a")
    return end(C(F.add2(B(h, "n"), h), "end"))


def thrice(x):
    h = F.relu(B(C(x, "a"), "n"))
    return end(C(F.add2(F.add2(C(h, "b"), h), F.max_pooling(h, (1, 1))), "end")) + F.mean(h * h)


STRUCTURES = {
    "relu, norm": lambda x: end(C(B(F.relu(C(x, "a")), "n"), "end")),
    "tanh, norm": lambda x: end(C(B(F.tanh(C(x, "a")), "n"), "end")),
    "sigmoid, norm": lambda x: end(C(B(F.sigmoid(C(x, "a")), "n"), "end")),
    "sum, relu, norm": lambda x: end(C(B(F.relu(F.add2(C(x, "a"), C(x, "b"))), "n"), "end")),
    "norm, relu, norm": lambda x: end(C(B(F.relu(B(C(x, "a"), "m")), "n"), "end")),
    "norm, sum, relu, norm": lambda x: end(
        C(B(F.relu(F.add2(B(C(x, "a"), "m"), C(x, "b"))), "n"), "end")
    ),
    "norms alone": deep_normalizations,
    "norm of h, and h": sum_with_what_is_normalized,
    "used three times": thrice,
    "a cut between norm and sum": lambda x: end(
        C(F.relu(F.add2(cut(B(C(x, "a"), "n")), C(x, "b"))), "end")
    ),
    "a cut before a relu": lambda x: end(C(F.add2(F.relu(cut(C(x, "a"))), F.sin(C(x, "b"))), "c")),
    "pooling, norm": lambda x: end(C(B(F.max_pooling(C(x, "a"), (2, 2)), "n"), "end")),
}


def gradients(build, fast, backwards=1, need_grad=True):
    nn.clear_parameters()
    nn.random.prng = np.random.RandomState(0)
    rng = np.random.RandomState(1)
    x = nn.Variable((3, 4, 6, 6), need_grad=need_grad)
    x.d = rng.randn(*x.shape)
    loss = build(x)
    if fast:
        assert accelerate(loss).parts > 0
    parameters = nn.get_parameters(grad_only=False)
    for v in (x, *parameters.values()):
        v.grad.zero()
    loss.forward(clear_no_need_grad=backwards == 1)
    for _ in range(backwards):
        loss.backward(clear_buffer=backwards == 1)
    found = {"loss": loss.d.copy(), "x": x.g.copy()}
    found.update({f"d {name}": v.g.copy() for name, v in parameters.items()})
    found.update({name: v.d.copy() for name, v in parameters.items()})
    return found


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    # What a normalization takes out has a gradient of rounding alone.
    size = max(np.abs(array).max() for name, array in expected.items() if name[:2] == "d ")
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=2e-5 * size, err_msg=name)


@pytest.mark.parametrize("name", STRUCTURES)
def test_gradients_are_nnablas(name):
    assert_same(gradients(STRUCTURES[name], True), gradients(STRUCTURES[name], False))


@pytest.mark.parametrize("name", ["relu, norm", "norm, sum, relu, norm", "used three times"])
def test_a_second_backward_adds_the_same_gradients(name):
    """As in NNabla, without another forward; running statistics move once."""
    expected = gradients(STRUCTURES[name], False, backwards=2)
    assert_same(gradients(STRUCTURES[name], True, backwards=2), expected)


def test_two_losses_over_one_trunk():
    def run(fast):
        nn.clear_parameters()
        nn.random.prng = np.random.RandomState(0)
        x = nn.Variable((3, 4, 6, 6))
        x.d = np.random.RandomState(1).randn(*x.shape)
        trunk = F.relu(B(C(x, "a"), "n"))
        losses = [end(C(trunk, "b")), end(C(trunk, "c"))]
        if fast:
            accelerate(*losses)
        parameters = nn.get_parameters()
        for v in parameters.values():
            v.grad.zero()
        nn.forward_all(losses)
        for loss in losses:
            loss.backward()
        return {f"d {name}": v.g.copy() for name, v in parameters.items()}

    assert_same(run(True), run(False))


def random_graph(x, rng):
    """Layers that draw their inputs from all that was made so far."""
    made = [C(x, "first")]
    for i in range(rng.randint(4, 12)):
        h = made[rng.randint(max(0, len(made) - 3), len(made))]
        kind = rng.randint(7)
        if kind == 0:
            h = C(h, str(i))
        elif kind == 1:
            h = B(h, str(i), bool(rng.randint(2)))
        elif kind == 2:
            h = F.relu(h)
        elif kind == 3:
            h = F.add2(h, made[rng.randint(len(made))])
        elif kind == 4:
            h = F.tanh(h)
        elif kind == 5:
            h = F.sin(h)  # has no layer
        else:
            h = F.leaky_relu(h, 0.3)
        made.append(h)
    # Batch statistics of what was normalized before make a rounding large; this bounds it.
    return F.mean(F.tanh(C(made[-1], "last"))) + F.mean(F.tanh(made[rng.randint(len(made))]))


@pytest.mark.parametrize("seed", range(60))
def test_random_graphs(seed):
    def build(x):
        return random_graph(x, np.random.RandomState(seed))

    expected, found = gradients(build, False), gradients(build, True)
    size = max(np.abs(array).max() for name, array in expected.items() if name[:2] == "d ")
    for name, array in expected.items():
        # A ReLU whose input a rounding turns is one number in some hundred.
        far = np.abs(found[name] - array) > 1e-3 * size + 1e-3 * np.abs(array)
        assert far.mean() <= 0.02, name


@pytest.mark.parametrize("both", [True, False])
def test_a_kept_variable_in_the_middle(both):
    """Its values and gradients are there, and nothing is freed too early."""
    nn.random.prng = np.random.RandomState(0)
    x = nn.Variable((2, 4, 6, 6))
    x.d = np.random.RandomState(1).randn(*x.shape)
    g = C(x, "a")
    g.persistent = True
    loss = F.mean(C(F.sin(g), "b"))
    loss.forward()
    loss.backward()
    expected = g.d.copy(), g.g.copy(), float(loss.d)
    accelerate(g, loss) if both else accelerate(loss, keep=[g])
    for _ in range(3):
        gc.collect()
        loss.forward(clear_no_need_grad=True)
        loss.backward(clear_buffer=True)
    np.testing.assert_allclose(g.d, expected[0], atol=1e-5)
    np.testing.assert_allclose(g.g, expected[1], atol=1e-6)
    assert float(loss.d) == pytest.approx(expected[2], rel=1e-5)


def test_sums_of_single_numbers_stay_nnablas():
    def build(x):
        h = C(x, "a")
        w = nn.get_parameters()["a/conv/W"]
        return F.mean(C(h, "b")) + (F.mean(w * w) + F.mean(w * w))

    assert_same(gradients(build, True), gradients(build, False))


def test_leaves_that_share_data_alone_have_gradients_of_their_own():
    def run(fast):
        rng = np.random.RandomState(0)
        first = nn.Variable.from_numpy_array(rng.randn(4, 4, 3, 3), need_grad=True)
        second = nn.Variable((4, 4, 3, 3), need_grad=True)
        second.data = first.data
        x = nn.Variable.from_numpy_array(rng.randn(2, 4, 6, 6))
        loss = end(F.convolution(F.tanh(F.convolution(x, first)), second))
        if fast:
            accelerate(loss)
        first.grad.zero()
        second.grad.zero()
        loss.forward()
        loss.backward()
        return {"d first": first.g.copy(), "d second": second.g.copy()}

    assert_same(run(True), run(False))


@pytest.mark.filterwarnings("ignore::nnabla_dqa.layers.tensors.AttentionWarning")
@pytest.mark.parametrize("rows", [(0, 1), (1, 0), (0, 0, 1), "both", "weights"])
def test_tables_of_coefficients(rows):
    """A row in two tables, or twice in one, and a table of the mixed weights themselves."""

    def build(x):
        with dqa.quantizers(dqa.MinMax(2), dqa.MinMax(4), dqa.MinMax(8)):
            h = F.tanh(dqa.parametric_functions.dqa_convolution(x, 4, (3, 3), name="a"))
            h = dqa.parametric_functions.dqa_convolution(h, 4, (3, 3), name="b")
        loss = end(h)
        mixtures = []
        loss.visit(lambda f: mixtures.append(f) if f.info.type_name == "DQAMixture" else None)
        a = [f.outputs[1] for f in mixtures]
        q = [f.outputs[0] for f in mixtures]
        if rows == "weights":
            return loss + end(F.convolution(x, F.concatenate(*q, axis=0)))
        tables = [(0, 1), (1, 0)] if rows == "both" else [rows]
        for table in tables:
            weights = nn.Variable.from_numpy_array(np.arange(3.0 * len(table)).reshape(-1, 3) ** 2)
            loss = loss + F.sum(F.concatenate(*[a[i] for i in table], axis=0) * weights)
        return loss

    assert_same(gradients(build, True), gradients(build, False))


def test_wrong_arguments_are_named():
    y = PF.affine(nn.Variable((2, 3)), 4)
    for wrong in (None, "a", y.data, [y]):
        with pytest.raises(TypeError, match="accelerate takes variables, not "):
            accelerate(wrong)
    with pytest.raises(TypeError, match="not int"):
        accelerate(y, keep=[3])
    assert accelerate(y, keep=y).parts == 1
    nothing = "there is no layer in it that oneDNN computes"
    assert accelerate(nn.Variable((2, 3))).reason == accelerate().reason == nothing


def test_nn_grad_says_that_it_does_not_pass():
    x = nn.Variable((2, 4, 6, 6), need_grad=True)
    loss = end(C(x, "a"))
    accelerate(loss)
    with pytest.raises(dqa.OneDnnError, match=r"nn\.grad does not pass layers on oneDNN"):
        nn.grad([loss], [x])


def with_and_without(build, updates=2):
    """What ``build``, given whether to accelerate, returns in either case, from equal weights."""
    results = []
    for fast in (False, True):
        nn.clear_parameters()
        np.random.seed(0)
        nn.random.prng = np.random.RandomState(0)
        results.append(build(fast, updates))
    return results


def assert_alike(build, **tolerances):
    plain, fast = with_and_without(build)
    assert plain.keys() == fast.keys()
    for name, array in plain.items():
        np.testing.assert_allclose(
            fast[name], array, err_msg=name, **{"rtol": 1e-4, "atol": 1e-6, **tolerances}
        )


def images(*shape, seed=1):
    return nn.Variable.from_numpy_array(np.random.RandomState(seed).randn(*shape) + 1)


def updated(loss, updates):
    """All gradients and arrays after some passes."""
    parameters = nn.get_parameters(grad_only=False)
    for _ in range(updates):
        for v in parameters.values():
            v.grad.zero()
        loss.forward(clear_no_need_grad=True)
        loss.backward(clear_buffer=True)
    arrays = {name: v.d.copy() for name, v in parameters.items()}
    arrays.update({f"{name}.g": v.g.copy() for name, v in parameters.items() if v.need_grad})
    return arrays


def test_what_is_evaluated_computes_nothing_of_the_loss():
    """Given together, as a loss and the same net for evaluation: statistics must not move."""

    def build(fast, updates):
        def net(x, train):
            h = PF.batch_normalization(C(x, "a"), batch_stat=train, name="n")
            return end(PF.affine(F.relu(h), 3, name="f"))

        loss, value = net(images(4, 3, 6, 6), True), net(images(2, 3, 6, 6, seed=2), False)
        if fast:
            assert accelerate(loss, value).parts == 2
        for _ in range(updates):
            value.forward(clear_buffer=True)
        arrays = {"value": value.d.copy(), **updated(loss, 1)}
        value.forward(clear_buffer=True)
        return {**arrays, "then": value.d.copy()}

    assert_alike(build)


def test_of_two_losses_over_one_trunk_one_computes_nothing_of_the_other():
    def build(fast, updates):
        trunk = F.relu(C(images(4, 3, 6, 6), "trunk"))
        first = end(PF.affine(B(C(trunk, "a"), "m"), 3, name="f"))
        second = end(PF.affine(B(C(trunk, "b"), "n"), 3, name="g"))
        if fast:
            assert accelerate(first, second).parts == 3
        arrays = updated(first, updates)
        nn.forward_all([first, second])
        return {**arrays, "first": first.d.copy(), "second": second.d.copy()}

    assert_alike(build)


@pytest.mark.parametrize("use", ["penalty", "affine", "convolution"])
def test_mixed_weights_that_another_layer_uses(use):
    """Their gradient lies in that of the weights, and so does what is seen with other axes."""

    def build(fast, updates):
        x = images(8, 4, 6, 6)
        with dqa.quantizers(dqa.MinMax(2), dqa.MinMax(4), dqa.MinMax(8)):
            y = dqa.parametric_functions.dqa_convolution(x, 6, (3, 3), name="c")
        q = y.parent.inputs[1]
        weights = nn.get_parameters()["c/conv/W"].d
        extra = {
            "penalty": lambda: F.mean(F.add2(q, nn.Variable.from_numpy_array(-weights)) ** 2),
            "affine": lambda: end(PF.affine(q, 3, name="hyper")),
            "convolution": lambda: end(PF.convolution(q, 3, (3, 3), name="hyper")),
        }[use]()
        loss = end(y) + extra
        if fast:
            assert accelerate(loss).parts >= 1
        return updated(loss, updates)

    assert_alike(build)


def test_a_row_of_a_table_that_a_layer_uses_too():
    def build(fast, updates):
        h = images(4, 3, 6, 6)
        with dqa.quantizers(dqa.MinMax(2), dqa.MinMax(4), dqa.MinMax(8)):
            for name in "ab":
                h = dqa.parametric_functions.dqa_convolution(h, 3, (3, 3), name=name)
        mixed, seen = [], []
        h.visit(lambda f: seen.append(f))
        mixed = [f.outputs[1] for f in seen if f.info.type_name == "DQAMixture"]
        assert len(mixed) == 2
        table = PF.affine(F.concatenate(*mixed, axis=0), 2, name="t")
        loss = end(h) + end(table) + end(PF.affine(mixed[0], 2, name="s"))
        if fast:
            accelerate(loss)
        return updated(loss, updates)

    assert_alike(build)


def test_the_gradient_of_what_is_kept_is_whole():
    def build(fast, updates):
        h = F.relu(C(images(4, 3, 6, 6), "a"))
        if not fast:
            h.persistent = True
        loss = end(PF.affine(h, 3, name="b")) + end(C(h, "c"))
        if fast:
            accelerate(loss, keep=[h])
        arrays = updated(loss, updates)
        return {**arrays, "kept": h.d.copy(), "kept.g": h.g.copy()}

    assert_alike(build)


def test_shared_statistics_move_in_nnablas_order():
    def build(fast, updates):
        def normalized(name):
            h = C(images(4, 3, 6, 6, seed=ord(name)), name)
            return PF.batch_normalization(h, decay_rate=0.5, name="n")

        loss = end(PF.affine(F.add2(normalized("a"), normalized("b")), 2, name="f"))
        if fast:
            assert accelerate(loss).parts == 1
        return updated(loss, updates)

    assert_alike(build)


def test_what_other_functions_would_not_use_is_not_accelerated():
    y = PF.affine(F.relu(C(images(2, 3, 6, 6), "a")), 3, name="b")
    loss = end(y)
    done = accelerate(y)
    assert done.parts == 0
    assert done.reason == (
        "functions use all its outputs and would keep the graph that is there; give it what is "
        "built on them"
    )
    assert accelerate(loss).parts == 1


def test_a_window_within_the_padding_stays_nnablas():
    y = F.max_pooling(C(images(2, 3, 6, 6), "a"), (1, 1), stride=(2, 2), pad=(1, 1))
    assert accelerate(y).left == {
        "MaxPooling: a window of [1, 1] fits into its padding of [1, 1]": 1
    }
