"""Checkpoints: whole or refused, and what differs between two trainings."""

from __future__ import annotations

import dataclasses
import gc
import io
import json
import os
import select
import signal
import time

import nnabla as nn
import nnabla.solvers as S
import numpy as np
import pytest

from nnabla_dqa._util.files import remove_parts
from nnabla_dqa.training.checkpoint import (
    CheckpointError,
    checkpoint_path,
    difference,
    read_checkpoint,
    write_checkpoint,
)
from nnabla_dqa.training.run import train
from tests.training.files import (
    assert_same_parameters,
    changed,
    convert,
    interrupted,
    make,
    one_line,
    parameters_of,
    write_console,
    write_samples,
)

pytestmark = pytest.mark.filterwarnings("ignore::nnabla_dqa.layers.tensors.AttentionWarning")

NOTES = {"recipe": {"epochs": 3, "learning_rate": 1e-3}, "epochs": [{"loss": 0.1}], "text": "ä"}


def solver(kind="Adam", steps=3):
    """A solver after some updates, and its parameters."""
    rng = np.random.RandomState(0)
    made = getattr(S, kind)()
    w = nn.Variable.from_numpy_array(rng.randn(4, 3), need_grad=True)
    made.set_parameters({"a/W": w, "b": nn.Variable.from_numpy_array([1.5], need_grad=True)})
    for _ in range(steps):
        for v in made.get_parameters().values():
            v.g = rng.randn(*v.shape)
        made.update()
    return made


def arrays():
    values = np.array([0.1, -0.0, 1e-42, 3e38, np.pi], np.float32)
    return {
        "a/W": np.arange(12, dtype=np.float32).reshape(4, 3),
        "b": values,
        "dqa/step": values[:1],
    }


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "net.nnp.checkpoint"
    write_checkpoint(path, arrays(), solver(), NOTES)
    return path


@pytest.mark.parametrize("kind", ["Adam", "Momentum", "Sgd", "AdamW", "Lamb", "Lars"])
def test_round_trip(kind, tmp_path):
    before = solver(kind)
    write_checkpoint(tmp_path / "c", arrays(), before, NOTES)
    assert [p.name for p in tmp_path.iterdir()] == ["c"]
    read = read_checkpoint(str(tmp_path / "c"))
    assert list(read.arrays) == list(arrays())
    for name, array in arrays().items():
        assert read.arrays[name].dtype == np.float32
        assert read.arrays[name].tobytes() == array.tobytes()
    for key, value in NOTES.items():
        assert read.notes[key] == value
    after = solver(kind, 0)
    read.solver.restore(after)
    for name, state in before.get_states().items():
        other = after.get_states()[name]
        assert other.t == state.t == 3
        assert set(other.pstate) == set(state.pstate)
        for key, variable in state.pstate.items():
            np.testing.assert_array_equal(other.pstate[key].d, variable.d)


def test_odd_names_and_a_parameter_without_numbers(tmp_path):
    odd = {"file": 1, "notes": 2, "solver": 3, "ä/ö W": 4, "../up": 5, "a\\b": 6}
    given = {name: np.full((2,), value, np.float32) for name, value in odd.items()}
    given["empty"] = np.zeros((0, 3), np.float32)
    write_checkpoint(tmp_path / "c", given, solver(), {})
    read = read_checkpoint(tmp_path / "c").arrays
    assert {name: a.tolist() for name, a in read.items()} == {
        name: a.tolist() for name, a in given.items()
    }


@pytest.mark.parametrize("failing", ["os.replace", "os.fsync", "numpy.lib.format.write_array"])
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_the_old_one_survives_a_failure(failing, error, path, monkeypatch):
    before = path.read_bytes()

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(failing, fail)
    with pytest.raises(type(error)):
        write_checkpoint(path, {"other": np.zeros(3)}, solver(), {})
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def refused(path):
    with pytest.raises(CheckpointError) as error:
        read_checkpoint(path)
    message = one_line(error)
    assert str(path) in message
    return message


@pytest.fixture
def own_garbage():
    """A file left open is a warning in the test that left it."""
    yield
    gc.collect()


@pytest.mark.usefixtures("own_garbage")
def test_every_cut_is_refused(path):
    data = path.read_bytes()
    for length in {*range(0, len(data), 29), *range(len(data) - 60, len(data))}:
        path.write_bytes(data[:length])
        assert "not a checkpoint, or damaged" in refused(path)


@pytest.mark.usefixtures("own_garbage")
def test_flipped_bytes_are_refused_or_harmless(path):
    """Each byte may be read as it was, or refused; nothing else may happen."""
    data = path.read_bytes()
    expected = read_checkpoint(path)
    refusals, others = 0, set()
    for position in range(0, len(data), 5):
        damaged = bytearray(data)
        damaged[position] ^= 0xFF
        path.write_bytes(bytes(damaged))
        try:
            found = read_checkpoint(path)
        except CheckpointError:
            refusals += 1
            continue
        except Exception as error:
            others.add(f"{type(error).__name__}: {error}")
            continue
        for name, array in found.arrays.items():
            np.testing.assert_array_equal(array, expected.arrays[name])
        assert list(found.arrays) == list(expected.arrays)
        assert found.solver.counts == expected.solver.counts
        assert found.notes == expected.notes
    assert not others
    assert refusals > len(data) / 10


def packed(**members):
    buffer = io.BytesIO()
    np.savez(buffer, **{k: np.frombuffer(v, np.uint8) for k, v in members.items()})
    return buffer.getvalue()


def other_files():
    npy = io.BytesIO()
    np.save(npy, np.zeros(3))
    npz = io.BytesIO()
    np.savez(npz, x=np.zeros((4, 2)), y=np.zeros(4))
    return {
        "text": b"this is text\n",
        "npy": npy.getvalue(),
        "data": npz.getvalue(),
        "notes are no JSON": packed(notes=b"{", counts=b"{}"),
        "notes are a list": packed(notes=b"[]", counts=b"{}"),
        "notes are no text": packed(notes=b"\xff\xfe\xfd", counts=b"{}"),
        "no counts": packed(notes=b'{"format": 2}'),
        "counts are no JSON": packed(notes=b'{"format": 2}', counts=b"\xff"),
        "counts are a list": packed(notes=b'{"format": 2}', counts=b"[1]"),
        "counts are no numbers": packed(notes=b'{"format": 2}', counts=b'{"a": "b"}'),
    }


@pytest.mark.parametrize("kind", list(other_files()))
def test_other_files_are_refused(kind, tmp_path):
    path = tmp_path / "net.nnp.checkpoint"
    path.write_bytes(other_files()[kind])
    assert "not a checkpoint, or damaged" in refused(path)


def test_missing_folder_and_format(path):
    assert "no such checkpoint" in refused(path.parent / "nowhere")
    assert "no such checkpoint" in refused(path.parent)
    notes = json.dumps({"format": 1}).encode()
    path.write_bytes(packed(notes=notes, solver=b""))
    assert "format 1; this version reads format 2" in refused(path)


@pytest.mark.parametrize(
    ("found", "wanted", "words"),
    [
        ({"a": {"b": 1}}, {"a": {"b": 2}}, "a.b is 1 there and 2 here"),
        ({"a": 1}, {"a": 1, "b": "x"}, "b is None there and 'x' here"),
        ({"a": 1, "c": 3}, {"a": 1}, "c is 3 there and None here"),
        ({"a": {"b": {"c": [1]}}}, {"a": {"b": {"c": [2]}}}, "a.b.c[0] is 1 there and 2 here"),
        (200, 240, "it is 200 there and 240 here"),
        ({"a": {"b": 1}}, {"a": "b"}, "a is {'b': 1} there and 'b' here"),
        (None, {"a": 1}, "it is None there and {'a': 1} here"),
    ],
)
def test_difference_names_the_first_place(found, wanted, words):
    assert difference(found, wanted) == words


def epochs(result):
    return [dataclasses.replace(epoch, seconds=0.0) for epoch in result.epochs]


SOLVERS = ("Momentum", "Adam", "AdamW")
SETS = ("minmax:2,4,8", "bwn/twn/float", "sawb:2")


@pytest.mark.slow
@pytest.mark.parametrize("rules", SETS)
@pytest.mark.parametrize("kind", SOLVERS)
def test_a_training_stopped_at_ten_steps_equals_one_in_one_go(rules, kind, tmp_path):
    """Of 40 updates in 4 epochs, the last 20 hard; every stop is resumed from its checkpoint."""
    source, recipe = make(tmp_path, rules, dropout=0.3, solver=kind, weight_decay=1e-3)
    straight = train(source, recipe, tmp_path / "straight.nnp")
    target = tmp_path / "resumed.nnp"
    stops = np.random.RandomState(len(kind) + len(rules)).permutation(np.arange(1, 40))[:10]
    done = 0
    for stop in sorted(int(s) for s in stops):
        stopped = interrupted(stop - done, source, recipe, target, resume=done > 0)
        message = one_line(stopped)
        assert message.startswith(f"stopped after {stop} of 40 steps; {stop} kept in ")
        assert stopped.value.checkpoint == checkpoint_path(target)
        assert not target.exists()
        done = stop
    resumed = train(source, recipe, target, resume=True)
    assert epochs(resumed) == epochs(straight)
    assert_same_parameters(parameters_of(target), parameters_of(straight.path))
    assert str(resumed.report) == str(straight.report)


@pytest.mark.slow
def test_a_checkpoint_is_written_within_an_epoch(tmp_path):
    """A process that is killed outright loses no more than save_seconds."""
    source, recipe = make(tmp_path)
    target = tmp_path / "out.nnp"

    def die(_, step):
        if step == 12:
            os._exit(9)

    child = os.fork()
    if child == 0:
        train(source, recipe, target, save_seconds=0.0, on_step=die)
    assert os.waitpid(child, 0)[1] == 9 << 8
    assert read_checkpoint(checkpoint_path(target)).notes["step"] == 12
    train(source, recipe, target, resume=True)
    straight = train(source, recipe, tmp_path / "straight.nnp").path
    assert target.read_bytes() == straight.read_bytes()


@pytest.mark.slow
def test_two_hundred_kills_while_it_is_written(tmp_path):
    """Whenever the writer dies, the newest whole checkpoint is there, and nothing piles up."""
    path = tmp_path / "net.nnp.checkpoint"
    rng = np.random.RandomState(0)
    made = solver(steps=1)
    started = time.perf_counter()
    for _ in range(5):
        write_checkpoint(path, {"w": np.zeros(20_000, np.float32)}, made, {"count": 0})
    longest = 2 * (time.perf_counter() - started) / 5
    least = 0
    for i in range(200):
        readable, writable = os.pipe()
        child = os.fork()
        if child == 0:
            count = least
            while True:
                count += 1
                array = np.full(20_000, count, np.float32)
                write_checkpoint(path, {"w": array}, made, {"count": count})
                os.write(writable, b".")
        if i % 2:
            # Every second kill falls after a first write, however slow a new process is.
            assert select.select([readable], [], [], 60)[0], "nothing was written"
        time.sleep(rng.uniform(0.0, longest))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(readable)
        os.close(writable)
        found = read_checkpoint(path)
        assert found.notes["count"] >= least + i % 2
        assert (found.arrays["w"] == found.notes["count"]).all()
        least = found.notes["count"]
    assert least >= 100
    assert len(os.listdir(tmp_path)) > 1
    remove_parts(path)
    assert os.listdir(tmp_path) == [path.name]


OTHERS = {
    "recipe": "recipe.epochs is 1 there and 2 here",
    "argument": "recipe.solver.beta1 is None there and 0.5 here",
    "samples": "samples is 240 there and 200 here",
    "values": "train.npz",
    "quantizers": "quantizers",
    "file": "sha256",
}


def another(kind, folder, source, recipe):
    """A training that differs from the first in ``kind``: its source and recipe."""
    if kind == "recipe":
        recipe = changed(recipe, epochs=2)
    if kind == "argument":
        recipe = changed(recipe, solver={"type": "Adam", "beta1": 0.5})
    if kind in ("samples", "values"):
        write_samples(folder / "train.npz", 200 if kind == "samples" else 240, seed=9)
    if kind == "quantizers":
        source = convert(folder / "net.nnp", "sawb:2,4,8")
    if kind == "file":
        source = convert(write_console(folder / "net.nnp", seed=1))
    return source, recipe


@pytest.mark.slow
@pytest.mark.parametrize("kind", OTHERS)
def test_a_checkpoint_of_another_training_is_refused(kind, tmp_path):
    source, recipe = make(tmp_path, epochs=1)
    target = tmp_path / "out.nnp"
    train(source, recipe, target)
    source, recipe = another(kind, tmp_path, source, recipe)
    before = target.read_bytes()
    with pytest.raises(CheckpointError) as error:
        train(source, recipe, target, resume=True)
    message = one_line(error)
    assert "out.nnp.checkpoint: belongs to another training" in message
    assert OTHERS[kind] in message
    assert len(message) < 500
    assert target.read_bytes() == before
