"""What a budget chooses for the layers of model code, and what the deployed file weighs."""

from __future__ import annotations

import itertools

import nnabla as nn
import nnabla.functions as F
import nnabla.solvers as S
import numpy as np
import pytest
from nnabla.initializer import UniformInitializer

import nnabla_dqa as dqa
import nnabla_dqa.parametric_functions as PF
from nnabla_dqa.budget.choice import choose_bits, error
from nnabla_dqa.budget.pull import RATE
from nnabla_dqa.budget.sizes import bytes_of_choices, float_bytes
from nnabla_dqa.budget.state import (
    budget_of,
    forget_budget,
    price_of,
    set_budget,
    weights_of,
)
from nnabla_dqa.budget.units import BudgetError
from nnabla_dqa.layers.tensors import AttentionWarning
from nnabla_dqa.regularization import PenaltyValue

SET = (dqa.MinMax(2), dqa.MinMax(3), dqa.MinMax(4), dqa.MinMax(8))
LEARNED = (dqa.LSQ(2), dqa.LSQ(3), dqa.LSQ(4))
BATCH = 16


def network(x, quantizers=SET, seed=0):
    """Mixed layers, one with a single quantizer, one float, normalization and biases."""
    rng = np.random.RandomState(seed)
    with dqa.quantizers(*quantizers):
        h = PF.dqa_affine(x, 24, name="a", rng=rng)
        h = F.relu(PF.batch_normalization(h, batch_stat=False, name="bn"))
        h = F.relu(PF.dqa_affine(h, 16, name="b", rng=rng))
    with dqa.quantizers(dqa.SAWB(2)):
        h = F.relu(PF.dqa_affine(h, 12, name="single", rng=rng))
    h = F.relu(PF.affine(h, 6, w_init=UniformInitializer((-0.5, 0.5), rng), name="float"))
    with dqa.quantizers(*quantizers):
        return PF.dqa_affine(h, 3, name="c", rng=rng)


class Training:
    """Steps of a training towards random targets."""

    def __init__(self, budget, steps=20, hard_fraction=0.25, solver=None, quantizers=SET, **more):
        rng = np.random.RandomState(1)
        self.x = rng.randn(10, BATCH, 8).astype(np.float32)
        self.t = rng.randint(0, 3, (10, BATCH, 1))
        self.inputs = nn.Variable((BATCH, 8)), nn.Variable((BATCH, 1))
        y = network(self.inputs[0], quantizers)
        loss = F.mean(F.softmax_cross_entropy(y, self.inputs[1]))
        self.loss = F.add2(loss, dqa.regularizer(0.0, budget=budget, **more))
        schedule = dqa.TemperatureSchedule(steps, hard_fraction=hard_fraction)
        self.solver = dqa.attach(solver or S.Adam(0.01), schedule)
        self.solver.set_parameters(nn.get_parameters())

    def step(self, i, scale=1.0, passes=1):
        self.inputs[0].d, self.inputs[1].d = self.x[i % 10], self.t[i % 10]
        self.solver.zero_grad()
        for _ in range(passes):
            self.loss.forward(clear_no_need_grad=True)
            self.loss.backward(scale, clear_buffer=True)
        if scale != 1:
            self.solver.scale_grad(1 / scale)
        self.solver.update()


def root():
    return nn.parameter.get_current_parameter_scope()


def evaluation(quantizers=SET):
    x = nn.Variable((BATCH, 8))
    with dqa.hard():
        return x, network(x, quantizers)


def deployed_bytes(path, graph):
    x, y = graph
    dqa.deploy(path, {"x": x}, {"y": y})
    summary = dqa.summarize(path)
    assert dqa.check_file(path).ok
    return summary.packed_bytes, {row.layer: row.bits for row in summary.layers}


def least():
    layers = weights_of(root())
    return sum(min(bytes_of_choices(layer)) for layer in layers) + float_bytes(root(), layers)


def most():
    layers = weights_of(root())
    return sum(max(bytes_of_choices(layer)) for layer in layers) + float_bytes(root(), layers)


@pytest.mark.parametrize("part", [0.0, 0.1, 0.35, 0.7, 1.0])
def test_the_deployed_file_meets_its_budget(part, tmp_path):
    """At the least possible size, the largest, and between; bytes are those of summary."""
    network(nn.Variable((BATCH, 8)))
    low, high = least(), most()
    nn.clear_parameters()
    budget = int(low + part * (high - low))
    training = Training(budget)
    graph = evaluation()
    for i in range(20):
        training.step(i)
    found, bits = deployed_bytes(tmp_path / "net.nnp", graph)
    assert found <= budget
    if part == 0:
        assert found == budget
        assert (bits["a/affine"], bits["b/affine"], bits["c/affine"]) == (2, 2, 2)
    if part == 1:
        assert (found, bits["a/affine"], bits["c/affine"]) == (budget, 8, 8)
    for row in dqa.report().layers:
        mixed = len(row.quantizers) > 1
        assert row.by_budget == mixed
        assert row.bits == bits[row.name] if mixed else row.bits == 2
    # No layer could have got the next larger quantizer for what is left.
    for layer in weights_of(root()):
        own = bytes_of_choices(layer)
        larger = [s for s in own if s > own[layer.target]]
        better = [
            s for k, s in enumerate(own) if error(layer, k) < error(layer, layer.target) - 1e-12
        ]
        if set(larger) & set(better):
            assert found + min(set(larger) & set(better)) - own[layer.target] > budget


def test_it_is_the_likeliest_choice_and_what_is_left_lowers_the_error():
    """Against all choices, both steps."""
    network(nn.Variable((BATCH, 8)))
    layers = weights_of(root())
    rng = np.random.RandomState(3)
    for layer in layers:
        if layer.mixture.is_mixed:
            layer.state["alpha"].d = rng.randn(4)
            layer.state["temperature"].d = 0.7
    sizes = [bytes_of_choices(layer) for layer in layers]
    logs = [np.log(layer.attention().astype(np.float64)) for layer in layers]
    errors = [[error(layer, k) for k in range(len(own))] for layer, own in zip(layers, sizes)]
    every = list(itertools.product(*[range(len(own)) for own in sizes]))

    def total(rows, chosen):
        return sum(row[k] for row, k in zip(rows, chosen))

    for budget in np.linspace(least(), most(), 7).astype(int):
        room = budget - float_bytes(root(), layers)
        set_budget(root(), int(budget))
        choose_bits(root())
        fitting = [c for c in every if total(sizes, c) <= room]
        first = max(fitting, key=lambda c: total(logs, c))
        raised = [
            c for c in fitting if all(k == f or s[k] > s[f] for k, f, s in zip(c, first, sizes))
        ]
        best = min(raised, key=lambda c: total(errors, c))
        found = [layer.target for layer in layers]
        assert total(errors, found) == pytest.approx(total(errors, best), abs=1e-12)
        assert found in [list(c) for c in raised]


def test_the_penalty_is_that_of_the_page_and_its_price_follows():
    """``mu (B(a) / budget - 1)`` in float64, its gradient to alpha, and dual ascent."""
    training = Training("1.2kB", steps=20)
    layers, scope = weights_of(root()), root()
    assert budget_of(scope) == 1200
    price_of(scope).d = [[0.75, 0.0]]

    def above(hard=False):
        fixed = float_bytes(scope, layers)
        attention = [layer.attention().astype(np.float64) for layer in layers]
        if hard:
            attention = [(a == a.max()) / (a == a.max()).sum() for a in attention]
        expected = [a @ bytes_of_choices(layer) for a, layer in zip(attention, layers)]
        return (fixed + sum(expected)) / 1200 - 1

    penalty = dqa.regularizer(0.0, budget=1200)
    penalty.forward()
    assert float(penalty.d) == pytest.approx(0.75 * above(), abs=1e-3)
    plain = dqa.regularizer(3.0)
    assert budget_of(scope) is None
    plain.forward()
    assert float(plain.d) > 0
    both = dqa.regularizer(3.0, budget=1200)
    price_of(scope).d = [[0.75, 0.0]]
    both.forward()
    assert float(both.d) == pytest.approx(0.75 * above(), abs=1e-3)

    nn.clear_parameters()
    training = Training("1.2kB", steps=20)
    layers, scope = weights_of(root()), root()
    for k, largest in enumerate((0, 3)):
        for layer in layers:
            if layer.mixture.is_mixed:
                layer.state["alpha"].d = np.eye(4)[largest] + [0.0, 0.1, 0.2, 0.3]
        price_of(scope).d = [[2.0, 0.0]]
        before = above(hard=True)
        assert (before > 0) == (largest == 3)
        training.step(k)
        # By what the network is heading for, up and down; rounding to bytes is left out.
        assert price_of(scope).d[0, 0] == pytest.approx(2 + RATE * before / 15, abs=5e-3)
    price_of(scope).d = [[1e-3, 0.0]]
    layers[0].state["alpha"].d = layers[1].state["alpha"].d = [4.0, 3.0, 2.0, 1.0]
    training.step(2)
    assert price_of(scope).d[0, 0] == 0


def test_alpha_feels_the_price():
    """The same training with a price moves attention to fewer bits."""
    expected = []
    for price in (0.0, 20.0):
        nn.clear_parameters()
        training = Training("1.2kB", steps=1000, solver=S.Sgd(0.02))
        for layer in weights_of(root()):
            if layer.mixture.is_mixed:
                layer.state["temperature"].d = 1.0
        price_of(root()).d = [[price, 0.0]]
        training.inputs[0].d, training.inputs[1].d = training.x[0], training.t[0]
        training.solver.zero_grad()
        training.loss.forward()
        training.loss.backward()
        training.solver.attention_solver.update()
        layer = weights_of(root())[0]
        expected.append(layer.attention() @ bytes_of_choices(layer))
    assert expected[1] < expected[0] - 0.1


@pytest.mark.parametrize(("scale", "passes"), [(1024.0, 1), (1.0, 3)])
def test_loss_scale_and_several_backward_passes_leave_the_price(scale, passes):
    prices = []
    for options in ((1.0, 1), (scale, passes)):
        nn.clear_parameters()
        training = Training("1.2kB", solver=S.Sgd(0.0))
        for layer in weights_of(root()):
            if layer.mixture.is_mixed:
                layer.state["alpha"].d = [1.0, 2.0, 3.0, 4.0]
        for i in range(3):
            training.step(i, *options)
        prices.append(price_of(root()).d.copy())
    np.testing.assert_allclose(prices[1], prices[0], rtol=1e-6)
    assert prices[0][0, 0] > 0


def test_a_skipped_update_leaves_the_price():
    training = Training("1.2kB")
    training.loss.forward()
    training.loss.backward()
    assert price_of(root()).g.any()
    training.solver.skip_update()
    assert not price_of(root()).d.any()
    assert not price_of(root()).g.any()


@pytest.mark.parametrize("quantizers", [SET, LEARNED])
@pytest.mark.parametrize("moment", [4, 15, 17])
def test_saved_and_loaded_it_goes_on_bit_for_bit(quantizers, moment, tmp_path):
    """In the soft phase, when the hard one begins and in it; with what quantizers learn."""
    results = []
    for saves in (False, True):
        nn.clear_parameters()
        training = Training("1.25kB", quantizers=quantizers)
        for i in range(20):
            if saves and i == moment:
                nn.parameter.save_parameters(
                    str(tmp_path / "p.h5"), nn.get_parameters(grad_only=False)
                )
                training.solver.save_states(str(tmp_path / "s.h5"))
                nn.clear_parameters()
                training = Training("1.25kB", quantizers=quantizers)
                nn.load_parameters(str(tmp_path / "p.h5"))
                training.solver.load_states(str(tmp_path / "s.h5"))
                training.solver.annealer.apply()
            training.step(i)
        results.append({k: v.d.copy() for k, v in nn.get_parameters(grad_only=False).items()})
    assert "dqa/price" in results[0]
    assert "a/affine/dqa/chosen" in results[0]
    for name, array in results[0].items():
        np.testing.assert_array_equal(results[1][name], array, err_msg=name)


def test_what_the_chosen_quantizer_learns_is_trained_to_the_end_and_no_other():
    training = Training("100kB", quantizers=LEARNED, solver=S.Momentum(0.01, 0.9))
    for i in range(15):
        training.step(i)
    layer = weights_of(root())[0]
    assert (layer.target, layer.is_hard) == (2, True)
    before = [layer.state[f"{k}/step"].d.copy() for k in range(3)]
    for i in range(15, 20):
        training.step(i)
    moved = [not np.array_equal(layer.state[f"{k}/step"].d, before[k]) for k in range(3)]
    assert moved == [False, False, True]


def test_without_a_hard_phase_the_last_attention_chooses(tmp_path):
    training = Training("1.2kB", hard_fraction=0)
    graph = evaluation()
    for i in range(19):
        training.step(i)
    with pytest.warns(AttentionWarning, match="still mixes quantizers"):
        training.step(19)
    with pytest.warns(AttentionWarning, match="still mixes quantizers"):
        found, _ = deployed_bytes(tmp_path / "net.nnp", graph)
    assert found <= 1200


def test_graphs_built_hard_follow_the_choice():
    """Also one that was built before the choice was made anew; argmax is what it was."""
    Training("1.2kB")
    x, y = evaluation()
    x.d = np.random.RandomState(0).randn(BATCH, 8)
    for k in (0, 2, 3):
        for layer in weights_of(root()):
            if layer.chosen is not None:
                layer.chosen.d = layer.mixture.alone(k)
        y.forward()
        values = {v.parent.inputs[1].shape: v.parent.inputs[1].d.copy() for v in affines(y)}
        for layer in weights_of(root()):
            if layer.chosen is not None:
                np.testing.assert_array_equal(
                    values[layer.weight.shape], SET[k].quantize(layer.weight.d)
                )


def affines(y):
    found = []
    y.visit(lambda f: found.append(f.outputs[0]) if f.info.type_name == "Affine" else None)
    return found


def test_a_graph_built_hard_before_the_budget_is_not_deployed(tmp_path):
    """It would use the target, whatever is chosen."""
    graph = evaluation()
    training = Training("1.2kB")
    for i in range(20):
        training.step(i)
    with pytest.raises(ValueError, match=r"layer a/affine was built under dqa.hard\(\) before it"):
        deployed_bytes(tmp_path / "net.nnp", graph)
    assert not list(tmp_path.iterdir())


def test_without_a_budget_nothing_is_there_and_one_can_be_taken_away():
    network(nn.Variable((BATCH, 8)))
    dqa.regularizer(1.0)
    before = set(nn.get_parameters(grad_only=False))
    assert not [n for n in before if "chosen" in n or "budget" in n or "price" in n]
    dqa.regularizer(0.0, budget="1.2kB")
    assert len(nn.get_parameters(grad_only=False)) == len(before) + 2 + 3
    forget_budget(root())
    assert set(nn.get_parameters(grad_only=False)) == before
    assert all(layer.target == 0 for layer in dqa.find_quantized())


def test_float32_in_a_set_counts_four_bytes_a_weight_and_each_channel_its_range():
    x = nn.Variable((4, 8))
    with dqa.quantizers(dqa.BWN(), dqa.TWN(), dqa.FullPrecision()):
        PF.dqa_affine(x, 10, name="a")
    (layer,) = weights_of(root())
    assert bytes_of_choices(layer) == [10 + 8, 20 + 8, 320]
    with dqa.quantizers(*[dqa.MinMax(n, channel_axis=1) for n in (3, 4, 5)]):
        PF.dqa_affine(x, 10, name="b")
    assert bytes_of_choices(weights_of(root())[1]) == [30 + 80, 40 + 80, 50 + 80]


def refused(make, said):
    with pytest.raises(BudgetError) as found:
        make()
    assert said in str(found.value)
    assert "\n" not in str(found.value)


def test_what_cannot_be_is_one_line():
    x = nn.Variable((BATCH, 8))
    network(x)
    low = least()
    refused(
        lambda: dqa.regularizer(0.0, budget=low - 1),
        f"{low - 1:,} bytes are too few; the least possible are {low:,}: ",
    )
    assert budget_of(root()) is None
    refused(lambda: dqa.regularizer(0.0, budget="1KB"), "unit 'KB'")
    dqa.regularizer(0.0, budget=low)

    nn.clear_parameters()
    with dqa.quantizers(dqa.MinMax(2)):
        PF.dqa_affine(x, 3, name="one")
    refused(lambda: dqa.regularizer(0.0, budget=1000), "no layer has more than one")

    nn.clear_parameters()
    with dqa.quantizers(dqa.MinMax(2), dqa.MinMax(4), mixing=dqa.BinaryRelax()):
        PF.dqa_affine(x, 3, name="relaxed")
    refused(lambda: dqa.regularizer(0.0, budget=1000), "layer relaxed/affine is mixed by")


def test_a_budget_that_layers_built_later_cannot_meet_says_so():
    x = nn.Variable((BATCH, 8))
    network(x)
    training = Training(least())
    PF.affine(x, 5, name="later")
    with pytest.raises(BudgetError, match="are too few; the least possible are"):
        training.step(0)


@pytest.mark.parametrize("size", [1, 2**20 - 1, 2**20, 2**24 + 1, 123_456_789, 2**40 + 3])
def test_any_size_is_kept_exactly(size):
    network(nn.Variable((BATCH, 8)))
    if size < least():
        size += 2**21
    set_budget(root(), size)
    assert budget_of(root()) == size


def test_lambda_is_for_activations_then():
    """Their attention has no budget: eq. 6 stays for it, and the value noted is the same."""
    x = nn.Variable((4, 8))
    with dqa.quantizers(*SET, activations=(dqa.EMAMinMax(2), dqa.EMAMinMax(4), dqa.EMAMinMax(8))):
        h = F.relu(PF.dqa_affine(x, 10, name="a"))
        PF.dqa_affine(h, 10, name="b")
    layers = [layer for layer in dqa.find_quantized() if layer.mixture.is_mixed]
    assert [layer.name for layer in layers] == ["a/affine", "b/affine", "b/affine:input"]
    penalty = dqa.regularizer(90.0, budget="1kB")
    penalty.forward()
    expected = 90 / 180 * layers[2].attention() @ [1.0, 4.0, 16.0]
    assert float(penalty.d) == pytest.approx(expected, rel=1e-5)
    noted = PenaltyValue(90.0).of([layer.attention() for layer in layers])
    assert noted == pytest.approx(expected, rel=1e-5)


def test_what_was_recorded_is_what_is_live():
    """With ProtoVariable: loss and gradients. NNabla gives the price none, so it stays."""

    def model(x):
        h = F.tanh(PF.dqa_affine(x, 12, name="a", quantizers=SET))
        y = PF.dqa_affine(h, 3, name="b", quantizers=SET)
        return F.add2(F.mean(F.mul2(y, y), axis=(0, 1)), dqa.regularizer(0.0, budget=130))

    with nn.graph_def.graph() as g:
        model(nn.ProtoVariable((BATCH, 8)))
    x = nn.Variable.from_numpy_array(np.random.RandomState(0).randn(BATCH, 8))
    found = []
    for loss in (model(x), g(x)):
        price_of(root()).d = [[2.0, 0.0]]
        for v in nn.get_parameters().values():
            v.grad.zero()
        loss.forward()
        loss.backward()
        alphas = {k: v.g.copy() for k, v in nn.get_parameters().items() if k.endswith("alpha")}
        found.append({"loss": loss.d.copy(), **alphas})
    for name, value in found[0].items():
        np.testing.assert_allclose(found[1][name], value, rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    "quantizers", [(dqa.PARQ(1), dqa.PARQ(2), dqa.MinMax(4)), (dqa.BWN(), dqa.TWN(), dqa.SAWB(4))]
)
def test_quantizers_that_are_soft_or_of_other_levels(quantizers, tmp_path):
    schedules = [s for s in (q.default_schedule(20, 10, 0.25) for q in quantizers) if s is not None]
    x = nn.Variable((BATCH, 8))
    y = network(x, quantizers)
    budget = (least() + most()) // 2
    loss = F.add2(F.mean(F.pow_scalar(y, 2)), dqa.regularizer(0.0, budget=budget))
    attention = dqa.TemperatureSchedule(20, hard_fraction=0.25)
    solver = dqa.attach(S.Sgd(0.01), attention, *schedules[:1])
    solver.set_parameters(nn.get_parameters())
    graph = evaluation(quantizers)
    for _ in range(20):
        x.d = np.random.RandomState(0).randn(BATCH, 8)
        loss.forward()
        solver.zero_grad()
        loss.backward()
        solver.update()
    assert deployed_bytes(tmp_path / "net.nnp", graph)[0] <= budget
