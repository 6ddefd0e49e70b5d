"""Training from file to file: what is learned, written, kept and refused."""

from __future__ import annotations

import numpy as np
import pytest

from nnabla_dqa.data import DataError
from nnabla_dqa.nnp.file import CONVERTED, NetworkFile
from nnabla_dqa.nnp_format.members import NNPError
from nnabla_dqa.recipes.recipe import Recipe
from nnabla_dqa.solver.finite_check import NonFiniteError
from nnabla_dqa.training.checkpoint import CheckpointError, checkpoint_path, read_checkpoint
from nnabla_dqa.training.result import TrainingStopped
from nnabla_dqa.training.run import train
from tests.training.experiments import signal_at
from tests.training.files import (
    assert_same_parameters,
    changed,
    interrupted,
    make,
    one_line,
    parameters_of,
    samples,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::nnabla_dqa.layers.tensors.AttentionWarning"),
]
BN = "BatchNormalization/bn"


def test_two_bits_learn_a_separable_problem(tmp_path):
    source, recipe = make(tmp_path)
    before = source.read_bytes()
    seen = []
    result = train(source, recipe, tmp_path / "out.nnp", on_epoch=seen.append)
    assert source.read_bytes() == before
    assert tuple(seen) == result.epochs
    assert [epoch.epoch for epoch in seen] == [1, 2, 3, 4]
    losses = [epoch.loss for epoch in seen]
    assert losses[-1] < 0.3 * losses[0]
    assert result.score == seen[-1].score > 0.9
    assert seen[-1].metric == "accuracy"
    rates = [epoch.learning_rate for epoch in seen]
    assert rates[:2] == [0.01, 0.01]
    assert rates[2] > rates[3] > 0
    assert {row.bits for row in result.report.layers} == {2}

    file = NetworkFile.read(result.path)
    assert file.kind == CONVERTED
    assert file.is_trained
    assert file.steps == 40
    assert file.archive.metadata["training"]["recipe"] == recipe.decisive()
    assert recipe.decisive()["data"]["train"] == "train.npz"
    old, new = parameters_of(source), parameters_of(result.path)
    for layer in ("Convolution/conv", "Affine/affine"):
        assert new[f"{layer}/dqa/hard"].tolist() == [1, 0, 0]
        assert new[f"{layer}/dqa/temperature"] == pytest.approx(0.03, rel=1e-4)
        for name in ("W", "b", "dqa/alpha"):
            assert (new[f"{layer}/{name}"] != old[f"{layer}/{name}"]).any()
    assert (new[f"{BN}/mean"] != old[f"{BN}/mean"]).any()


@pytest.mark.parametrize("head", ["binary", "regression"])
def test_other_heads_learn(head, tmp_path):
    source, recipe = make(tmp_path, head=head, epochs=6)
    result = train(source, recipe, tmp_path / "out.nnp")
    assert result.epochs[-1].loss < 0.4 * result.epochs[0].loss
    assert result.score > 0.9 if head == "binary" else result.score < 0.2


def test_binary_relax_trains(tmp_path):
    from nnabla_dqa.layers.rules import Rules

    rules = Rules.from_mapping({"quantizers": "bwn/twn/float", "mixing": "binary_relax"})
    source, recipe = make(tmp_path, rules=rules)
    result = train(source, recipe, tmp_path / "out.nnp")
    assert result.score > 0.9
    new = parameters_of(result.path)
    assert new["Affine/affine/dqa/hard"].tolist() == [1, 0, 0]
    # 20 of the 40 updates are soft: omega grows once, after the first epoch.
    assert new["Affine/affine/dqa/omega"] == pytest.approx(380, rel=1e-4)


def test_two_mixing_rules_in_one_file_are_refused(tmp_path):
    from nnabla_dqa.layers.rules import Rules

    rule = {"layers": "Affine*", "quantizers": "minmax:2,4,8", "mixing": "binary_relax"}
    rules = Rules.from_mapping({"rules": [rule]})
    source, recipe = make(tmp_path, rules=rules)
    with pytest.raises(NNPError) as error:
        train(source, recipe, tmp_path / "out.nnp")
    assert str(source) in one_line(error)


def test_attention_follows_the_schedule(tmp_path):
    options = dict(hard_fraction=0.25, temperature={"start": 50, "end": 0.1}, attention_lr=3.0)
    source, recipe = make(tmp_path, epochs=2, **options)
    found = []

    def record(trainable, step):
        parameters = trainable.parameters()
        state = parameters["Affine/affine/dqa/temperature"].d[0]
        hard = parameters["Affine/affine/dqa/hard"].d.tolist()
        alpha = parameters["Affine/affine/dqa/alpha"].d.copy()
        solver = trainable.solver
        rates.append((solver.solver.learning_rate(), solver.attention_solver.learning_rate()))
        found.append((state, hard, alpha))

    rates = []
    train(source, recipe, tmp_path / "out.nnp", on_step=record)
    assert len(found) == 20
    for i, (temperature, hard, _) in enumerate(found):
        b = min(i + 1, 15)
        assert temperature == pytest.approx(50 * (0.1 / 50) ** (b / 15), rel=1e-5)
        assert hard == ([1, 0, 0] if i >= 15 else [0, 0, 0])
        # What the solvers have got from the step before.
        if i:
            rate = recipe.learning_rate_at((i - 1) / 20)
            assert rates[i] == pytest.approx((rate, 3 * rate))
    alphas = [entry[2] for entry in found]
    assert (alphas[0] != alphas[15]).any()
    np.testing.assert_array_equal(alphas[15], alphas[-1])


def test_limit_monitor_and_messages(tmp_path):
    source, recipe = make(tmp_path, data={"limit": 60}, epochs=3)
    result = train(source, recipe, tmp_path / "out.nnp", monitor=tmp_path / "monitor")
    assert NetworkFile.read(result.path).steps == 3 * (60 // 24)
    files = {path.name: path.read_text() for path in (tmp_path / "monitor").iterdir()}
    names = ("error", "learning-rate", "loss", "score", "temperature")
    assert sorted(files) == ["attention.csv", *(f"{name}.series.txt" for name in names)]
    rows = [line.split(",") for line in files["attention.csv"].splitlines()]
    layers = ["Convolution/conv", "Affine/affine"]
    assert [(row[0], row[1]) for row in rows] == [(e, k) for e in "123" for k in layers]
    shares = [tuple(float(a) for a in row[2:]) for row in rows[-2:]]
    assert shares == [result.epochs[-1].attention[k] for k in layers]
    for name, values in (
        ("loss", [epoch.loss for epoch in result.epochs]),
        ("score", [epoch.score for epoch in result.epochs]),
        ("learning-rate", [epoch.learning_rate for epoch in result.epochs]),
    ):
        rows = [line.split() for line in files[f"{name}.series.txt"].splitlines()]
        assert [int(row[0]) for row in rows] == [1, 2, 3]
        assert [float(row[1]) for row in rows] == pytest.approx(values, rel=1e-4)


def test_parameters_that_the_file_fixes_stay_bit_for_bit(tmp_path):
    fixed = ("Convolution/conv/W", f"{BN}/beta", "Affine/affine/b")
    source, recipe = make(tmp_path, fixed=fixed, weight_decay=0.01)
    result = train(source, recipe, tmp_path / "out.nnp")
    old, new = parameters_of(source), parameters_of(result.path)
    for name, array in old.items():
        moves = name not in fixed and "/dqa/config/" not in name
        assert (new[name] != array).any() == moves, name
    message = next(m for m in result.messages if "kept fixed" in m)
    assert all((name in message) == (name in fixed) for name in (*fixed, f"{BN}/mean"))


def test_weight_decay_spares_attention(tmp_path):
    """With nothing but decay the weights shrink by the rate, and alpha stays."""
    options = {"lambda": 0, "solver": "Sgd", "lr_schedule": "constant", "learning_rate": 0.1}
    source, recipe = make(tmp_path, epochs=1, data={"limit": 24}, hard_fraction=0, **options)
    ends = {}
    for rate in (0.0, 0.5):
        train(source, changed(recipe, weight_decay=rate), tmp_path / "out.nnp")
        ends[rate] = parameters_of(tmp_path / "out.nnp")
    start = parameters_of(source)
    for name in ("Affine/affine/W", "Convolution/conv/W"):
        shrunk = ends[0.0][name] - 0.1 * 0.5 * start[name]
        np.testing.assert_allclose(ends[0.5][name], shrunk, atol=1e-6)
        alpha = name.replace("/W", "/dqa/alpha")
        np.testing.assert_array_equal(ends[0.5][alpha], ends[0.0][alpha])


def test_statistics_are_computed_anew_at_the_end(tmp_path):
    source, recipe = make(tmp_path, epochs=2)
    train(source, recipe, tmp_path / "a.nnp")
    train(source, changed(recipe, update_normalization=240), tmp_path / "b.nnp")
    running, anew = parameters_of(tmp_path / "a.nnp"), parameters_of(tmp_path / "b.nnp")
    assert [n for n in running if (running[n] != anew[n]).any()] == [f"{BN}/mean", f"{BN}/var"]
    q = NetworkFile.read(tmp_path / "a.nnp").mixtures["Convolution/conv"].quantizers[0]
    w = q.quantize(running["Convolution/conv/W"]).astype(np.float64)[:, 0]
    padded = np.pad(samples()[0].astype(np.float64)[:, 0], ((0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    h = np.einsum("bijkl,okl->boij", windows, w)
    h += running["Convolution/conv/b"].reshape(1, -1, 1, 1)
    np.testing.assert_allclose(anew[f"{BN}/mean"].ravel(), h.mean(axis=(0, 2, 3)), atol=1e-5)
    np.testing.assert_allclose(anew[f"{BN}/var"].ravel(), h.var(axis=(0, 2, 3)), rtol=1e-3)


@pytest.mark.parametrize("kind", ["float", "deployed", "all float"])
def test_files_that_cannot_learn_are_refused(kind, tmp_path):
    source, recipe = make(tmp_path, rules="float" if kind == "all float" else "minmax:2,4,8")
    if kind == "float":
        source = tmp_path / "net.nnp"
    if kind == "deployed":
        from nnabla_dqa.nnp.deploy import deploy_file

        deploy_file(train(source, recipe, tmp_path / "t.nnp").path, tmp_path / "d.nnp")
        source = tmp_path / "d.nnp"
    with pytest.raises(NNPError) as error:
        train(source, recipe, tmp_path / "out.nnp")
    message = one_line(error)
    assert message.startswith(f"{source}: ")
    assert kind in message
    assert not (tmp_path / "out.nnp").exists()


def test_too_few_samples(tmp_path):
    source, recipe = make(tmp_path, batch_size=241)
    with pytest.raises(DataError, match="240 samples, fewer than batch_size=241") as error:
        train(source, recipe, tmp_path / "out.nnp")
    one_line(error)


@pytest.mark.parametrize("name", ["out.onnx", "nowhere/out.nnp"])
def test_a_target_that_cannot_be_written_is_refused_before_the_first_update(name, tmp_path):
    source, recipe = make(tmp_path)
    with pytest.raises((NNPError, OSError)) as error:
        train(source, recipe, tmp_path / name, on_step=lambda *_: pytest.fail("trained"))
    message = one_line(error)
    assert ("must end in .nnp" if name == "out.onnx" else "there is no folder") in message


@pytest.mark.slow
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_seeds(dropout, tmp_path):
    source, recipe = make(tmp_path, dropout=dropout, epochs=2, data={"validation": None})
    ends = []
    for seed in (3, 3, 4):
        train(source, changed(recipe, seed=seed), tmp_path / "out.nnp")
        ends.append(parameters_of(tmp_path / "out.nnp"))
    assert_same_parameters(ends[0], ends[1])
    assert (ends[0]["Affine/affine/W"] != ends[2]["Affine/affine/W"]).any()


def test_monitors_of_a_resumed_training_hold_all_epochs(tmp_path):
    source, recipe = make(tmp_path)
    options = dict(monitor=tmp_path / "m")
    interrupted(25, source, recipe, tmp_path / "out.nnp", **options)
    train(source, recipe, tmp_path / "out.nnp", resume=True, **options)
    rows = (tmp_path / "m" / "loss.series.txt").read_text().splitlines()
    assert [int(row.split()[0]) for row in rows] == [1, 2, 3, 4]


@pytest.mark.parametrize("moment", ["first epoch", "first checkpoint", "on_epoch"])
def test_ctrl_c_at_any_moment(moment, tmp_path, monkeypatch):
    source, recipe = make(tmp_path)
    target = tmp_path / "out.nnp"

    def interrupt(*_):
        raise KeyboardInterrupt

    on_step = signal_at(5) if moment == "first epoch" else None
    if moment == "first checkpoint":
        monkeypatch.setattr("os.replace", interrupt)
    on_epoch = interrupt if moment == "on_epoch" else None
    with pytest.raises(KeyboardInterrupt) as stopped:
        train(source, recipe, target, on_epoch=on_epoch, on_step=on_step)
    assert isinstance(stopped.value, TrainingStopped)
    kept = stopped.value.checkpoint
    assert kept == (None if moment == "first checkpoint" else checkpoint_path(target))
    assert checkpoint_path(target).exists() == (kept is not None)
    assert str(kept or "nothing kept") in one_line(stopped)
    assert not target.exists()


@pytest.mark.slow
def test_a_training_that_blows_up_keeps_its_checkpoint(tmp_path, monkeypatch):
    source, recipe = make(tmp_path, solver="Sgd")
    target = tmp_path / "out.nnp"
    with monkeypatch.context() as patch:
        huge = Recipe.learning_rate_at
        patch.setattr(
            Recipe, "learning_rate_at", lambda self, p: huge(self, p) * (1e30 if p > 0.6 else 1)
        )
        with pytest.raises(NonFiniteError) as error:
            train(source, recipe, target)
    one_line(error)
    assert not target.exists()
    assert len(read_checkpoint(checkpoint_path(target)).notes["epochs"]) == 2
    train(source, recipe, target, resume=True)
    straight = train(source, recipe, tmp_path / "straight.nnp")
    assert_same_parameters(parameters_of(target), parameters_of(straight.path))


def test_equal_trainings_write_equal_files(tmp_path):
    source, recipe = make(tmp_path)
    straight = train(source, recipe, tmp_path / "straight.nnp").path.read_bytes()
    target = tmp_path / "resumed.nnp"
    interrupted(15, source, recipe, target)
    train(source, recipe, target, resume=True)
    assert target.read_bytes() == straight


def test_resuming_from_nothing_and_from_a_damaged_checkpoint(tmp_path):
    source, recipe = make(tmp_path)
    for content, words in ((None, "no such checkpoint"), (b"PK", "not a checkpoint, or damaged")):
        if content is not None:
            checkpoint_path(tmp_path / "out.nnp").write_bytes(content)
        with pytest.raises(CheckpointError, match=words) as error:
            train(source, recipe, tmp_path / "out.nnp", resume=True)
        one_line(error)
