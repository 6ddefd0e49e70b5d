"""Random networks of all kinds of layers: converted, run, trained, deployed and checked."""

from __future__ import annotations

import tempfile
from pathlib import Path

import nnabla as nn
import numpy as np
import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

import nnabla_dqa as dqa
from nnabla_dqa.layers.functions import CHANNEL_AXIS
from nnabla_dqa.nnp.check import check_file
from nnabla_dqa.nnp.convert import convert_file
from nnabla_dqa.nnp.deploy import deploy_file
from nnabla_dqa.nnp.file import NetworkFile
from nnabla_dqa.nnp.live import Program
from nnabla_dqa.nnp_format.archive import Archive
from tests.nnp.networks import Net, assert_equal_outputs, outputs, samples, train

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::nnabla_dqa.AttentionWarning")]
SETS = [
    "minmax:2,4,8",
    "minmax:1,3@channel",
    "sawb:2,3,8",
    "sawb:2@channel",
    "bwn/twn/float",
    "twn/minmax:4,8@channel",
    "bwn",
]
CHANNELS = 3
# Without shrinking: the seed and the size of a failing network are short already.
PHASES = (Phase.explicit, Phase.generate)


class _Grower:
    """Adds random functions; vectors and pictures to choose their inputs from."""

    def __init__(self, seed: int, size: int, networks: int) -> None:
        self.net = Net("net0", seed)
        self.rng = np.random.RandomState(seed + 1)
        self.weights = 0
        for i in range(networks):
            if i:
                self.net.begin(f"net{i}")
            self._begin()
            while len(self.net.network.function) < size:
                self._grow()
            self._finish(f"net{i}")

    def _begin(self) -> None:
        self.pictures = [self.net.input("x", CHANNELS, 3, 3)]
        self.vectors = [self.net.input("v", 4)]
        self.used: set[str] = set()
        if self.rng.rand() < 0.5:
            # The first functions of the network: every input is used.
            h = self.net.embed(self.net.input("index", 2), 5, 2, self._weight("Embed"))
            self.vectors.append(self.net.affine(h, 4, self._weight("AffineOfEmbed")))

    def _weight(self, kind: str) -> str:
        """A new name, or with some chance that of a layer of this kind that there is."""
        known = [n for n in self.net.parameters if n.startswith(f"{kind}-") and n.endswith("W")]
        if known and self.rng.rand() < 0.3:
            return str(self.rng.choice(known))
        self.weights += 1
        return f"{kind}-{self.weights}/{'W' if self.rng.rand() < 0.8 else 'odd W'}"

    def _grow(self) -> None:
        if self.rng.rand() < 0.3:
            self.vectors.append(self._vector(str(self.rng.choice(self.vectors))))
        else:
            self.pictures.append(self._picture(str(self.rng.choice(self.pictures[-4:]))))

    def _picture(self, x: str) -> str:
        net, shape, bias = self.net, self.net.shapes[x], bool(self.rng.randint(2))
        kind = self.rng.choice(["conv", "deconv", "dw", "up", "bn", "act", "add", "join"])
        if kind == "conv":
            return net.conv(x, CHANNELS, self._weight(f"Convolution{bias}"), bias)
        if kind == "deconv":
            return net.deconv(x, CHANNELS, self._weight(f"Deconvolution{bias}"), bias)
        if kind in ("dw", "up"):
            weight = self._weight(f"{kind}{bias}")
            return net.depthwise(x, weight, bias, up=kind == "up")
        if kind == "bn":
            self.weights += 1
            return net.normalize(x, f"bn{self.weights}")
        if kind == "act":
            return net.call(str(self.rng.choice(["Tanh", "Sigmoid"])), [x], shape)
        other = str(self.rng.choice(self.pictures))
        if kind == "add":
            # Kept small, so that long sums do not overflow.
            return net.call("Tanh", [net.call("Add2", [x, other], shape)], shape)
        joined = net.call("Concatenate", [x, other], (2 * CHANNELS, *shape[1:]), axis=1)
        return net.conv(joined, CHANNELS, self._weight("Joined"), False)

    def _vector(self, x: str) -> str:
        kind = self.rng.choice(["affine", "flat", "act", "add"])
        if kind == "affine":
            return self.net.affine(x, 4, self._weight("Affine"))
        if kind == "flat":
            return self.net.affine(str(self.rng.choice(self.pictures)), 4, self._weight("Flat"))
        if kind == "act":
            return self.net.call("Tanh", [x], (4,))
        return self.net.call("Add2", [x, str(self.rng.choice(self.vectors))], (4,))

    def _finish(self, name: str) -> None:
        used = {n for f in self.net.network.function for n in f.input}
        for x in ("x", "v"):
            if x not in used:
                self.net.affine(x, 2, self._weight(f"Last{x}"))
        made = [n for f in self.net.network.function for n in f.output]
        used = {n for f in self.net.network.function for n in f.input}
        self.net.executor(name, ["x", "v"], [n for n in made if n not in used])


def grow(seed: int, size: int, networks: int = 1) -> Net:
    return _Grower(seed, size, networks).net


def assert_hard(path: Path, deployed: Path) -> None:
    """Every network of a deployed file computes what the hard program of ``path`` computes."""
    file = NetworkFile.read(path)
    for name in Archive.read(deployed).definition.network:
        values = samples(name)
        with dqa.hard():
            built = Program(file).build(name.name, 2)
        for key, variable in built.inputs.items():
            variable.d = values[key]
        nn.forward_all(list(built.outputs.values()))
        found = outputs(deployed, name.name, values)
        assert found.keys() == built.outputs.keys()
        for key, variable in built.outputs.items():
            assert np.isfinite(variable.d).all()
            np.testing.assert_array_equal(found[key], variable.d, err_msg=f"{name.name} {key}")


@settings(max_examples=9, phases=PHASES)
@example(0, 200, 1)
@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 3))
def test_float_changes_nothing(seed, size, networks):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        net = grow(seed, size, networks)
        source = net.save(folder / "m.nnp")
        convert_file(source, folder / "c.nnp", "float")
        assert NetworkFile.read(folder / "c.nnp").archive.definition == net.definition
        assert_equal_outputs(source, folder / "c.nnp")
        deploy_file(folder / "c.nnp", folder / "d.nnp", allow_untrained=True)
        assert_equal_outputs(source, folder / "d.nnp")
        (only,) = check_file(folder / "d.nnp").faults
        assert only == "nothing to check: the file names no quantized tensor"


@settings(max_examples=10, phases=PHASES)
@example(1, 200, 1, SETS[0])
@given(st.integers(0, 10**6), st.integers(1, 25), st.integers(1, 2), st.sampled_from(SETS))
def test_deployed_is_what_the_hard_program_computes(seed, size, networks, quantizers):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = grow(seed, size, networks).save(folder / "m.nnp")
        convert_file(source, folder / "c.nnp", quantizers)
        train(folder / "c.nnp", folder / "t.nnp", seed)
        deploy_file(folder / "t.nnp", folder / "d.nnp")
        check = check_file(folder / "d.nnp")
        assert check.ok, str(check)
        assert_hard(folder / "t.nnp", folder / "d.nnp")


@settings(max_examples=9, phases=PHASES)
@given(st.integers(0, 10**6), st.integers(1, 25), st.sampled_from(SETS))
def test_folding_keeps_the_outputs(seed, size, quantizers):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = grow(seed, size).save(folder / "m.nnp")
        convert_file(source, folder / "c.nnp", quantizers)
        for fold in (False, True):
            deploy_file(folder / "c.nnp", folder / f"{fold}.nnp", fold=fold, allow_untrained=True)
        assert check_file(folder / "True.nnp").ok
        network = Archive.read(folder / "False.nnp").definition.network[0]
        plain, found = (
            outputs(folder / f"{fold}.nnp", "net0", samples(network)) for fold in (False, True)
        )
        assert plain.keys() == found.keys()
        for key, array in plain.items():
            atol = 1e-4 * max(1.0, float(np.abs(array).max()))
            np.testing.assert_allclose(found[key], array, rtol=1e-4, atol=atol, err_msg=key)


def test_the_networks_hold_what_they_are_meant_to_hold():
    types = set()
    shared = 0
    for seed in range(6):
        net = grow(seed, 40, 2)
        uses = [f.input[1] for n in net.definition.network for f in n.function if len(f.input) > 1]
        weights = [name for name in uses if name in net.parameters]
        shared += len(weights) - len(set(weights))
        types |= {f.type for n in net.definition.network for f in n.function}
    assert types >= {*CHANNEL_AXIS, "BatchNormalization", "Add2", "Concatenate"}
    assert shared > 20
    assert len(grow(0, 200).network.function) >= 200
