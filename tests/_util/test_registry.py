"""Classes of installed packages, found by their entry points when their name is first needed."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import textwrap

import pytest

from nnabla_dqa._util.registry import PluginWarning, Registry, UnknownTypeError

PLUGIN = '''
import dataclasses
import nnabla.functions as F
from nnabla_dqa import MixingRule, Quantizer
from nnabla_dqa.quantization import Grid

@dataclasses.dataclass(frozen=True)
class Gained(Quantizer):
    """The mean magnitude times ``gain``, with the sign of the weight."""

    bits: int = 1
    gain: float = 1.0

    def grid(self, statistics):
        codes = F.greater_equal_scalar(statistics.w, 0.0)
        scale = F.mul_scalar(statistics.mean_magnitude, 2.0 * self.gain)
        return Grid(codes, scale, F.mul_scalar(scale, -0.5))

@dataclasses.dataclass(frozen=True)
class Even(MixingRule):
    """All quantizers alike."""

    weight: float = 1.0

    def state(self, quantizers):
        return {}

    def coefficients(self, state, count, target):
        return F.constant(1.0 / count, (1, count))

def broken():
    pass
'''
POINTS = """
[nnabla_dqa.quantizers]
gained = a_plugin:Gained
missing = no_such_module:Thing
function = a_plugin:broken

[nnabla_dqa.mixing_rules]
even = a_plugin:Even
"""


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A distribution as pip would leave it, on the path of processes that are started."""
    info = tmp_path / "site" / "a_plugin-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: a-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(POINTS)
    (tmp_path / "site" / "a_plugin.py").write_text(PLUGIN)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'site'}:{':'.join(sys.path)}")
    return tmp_path


def run(folder, *arguments):
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done


def test_commands_and_json_know_the_classes_of_installed_packages(installed):
    from tests.nnp.networks import small

    small().save(installed / "m.nnp")
    options = ["--quantizers", "gained:1,gain=0.5/minmax:4", "--mixing", "even:weight=2"]
    done = run(installed, "-m", "nnabla_dqa", "convert", "m.nnp", "-o", "c.nnp", *options)
    assert "Gained1 MinMax4" in done.stdout
    warned = [line for line in done.stderr.splitlines() if "warning" in line]
    assert len(warned) == 2
    assert "missing = no_such_module:Thing of group 'nnabla_dqa.quantizers' cannot" in warned[0]
    assert "function = a_plugin:broken" in warned[1]
    (installed / "r.yaml").write_text("quantizers: [{type: Gained, gain: 0.5}, 'minmax:4']")
    run(installed, "-m", "nnabla_dqa", "convert", "m.nnp", "-o", "y.nnp", "--rules", "r.yaml")
    deployed = ["deploy", "y.nnp", "-o", "d.nnp", "--allow-untrained"]
    run(installed, "-m", "nnabla_dqa", *deployed)
    assert "yes" in run(installed, "-m", "nnabla_dqa", "check", "d.nnp").stdout


def test_nothing_is_loaded_before_a_name_is_not_known(installed):
    script = """
        import sys, warnings
        warnings.simplefilter("error")
        import nnabla_dqa
        from nnabla_dqa.quantization import quantizer_from_json
        from nnabla_dqa.quantization.notation import parse_quantizers
        parse_quantizers("minmax:2,4,8/float")
        assert "a_plugin" not in sys.modules
        warnings.simplefilter("ignore")
        quantizer = quantizer_from_json({"type": "Gained", "bits": 1, "gain": 2.0})
        assert type(quantizer).__module__ == "a_plugin" and quantizer.gain == 2
    """
    run(installed, "-c", textwrap.dedent(script))


@dataclasses.dataclass(frozen=True)
class Thing:
    size: int = 1


def test_a_name_that_nobody_knows_names_the_group():
    registry: Registry = Registry("thing", "group.of.things")
    registry.register(Thing)
    for name in ("thing", "THING", "Thing", "th_ing"):
        assert registry.find(name) is Thing
    with pytest.raises(
        UnknownTypeError, match=r"unknown thing type 'Other'; known: Thing; .*'group.of"
    ):
        registry.from_json({"type": "Other"})
    with pytest.raises(ValueError, match="thing Thing has no field 'colour'; its fields: size"):
        registry.from_json({"type": "Thing", "colour": 1})
    with pytest.raises(ValueError, match=r"a thing is \{type: NAME, ...\}, not 5"):
        registry.from_json(5)
    assert registry.from_json(Thing(3)) == Thing(3)


def test_a_broken_plugin_warns_once(monkeypatch):
    class Point:
        name, value = "bad", "bad_module:Bad"

        def load(self):
            raise RuntimeError("two\nlines")

    monkeypatch.setattr("nnabla_dqa._util.registry._entry_points", lambda group: [Point()])
    registry: Registry = Registry("thing", "g")
    warning = "bad = bad_module:Bad of group 'g' cannot be used: .*two lines"
    with pytest.warns(PluginWarning, match=warning), pytest.raises(UnknownTypeError):
        registry.find("Other")
    with pytest.raises(UnknownTypeError):
        registry.find("Other")
