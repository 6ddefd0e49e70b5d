"""Set-up, import time, JSON and the registry."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import resource
import runpy
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import setuptools

import nnabla_dqa as dqa
from nnabla_dqa._util.registry import Registry
from nnabla_dqa.layers.tensors import Mixture
from nnabla_dqa.quantization import quantizer_from_json

ROOT = Path(__file__).resolve().parent.parent
QUANTIZERS = [
    dqa.MinMax(3),
    dqa.MinMax(2, channel_axis=0),
    dqa.SAWB(4),
    dqa.BWN(),
    dqa.TWN(channel_axis=-1),
    dqa.FullPrecision(),
]


@pytest.mark.parametrize("quantizer", QUANTIZERS, ids=str)
def test_quantizer_json_round_trip(quantizer):
    assert quantizer_from_json(quantizer.to_json()) == quantizer


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"type": "MaxMin"}, "unknown quantizer type 'MaxMin'; known: BWN,"),
        ({}, "unknown quantizer type None"),
        ({"type": "MinMax", "bit": 2}, "MinMax has no field 'bit'; its fields: bits, channel_axis"),
        ({"type": "MinMax"}, "quantizer MinMax: .*bits"),
        ({"type": "MinMax", "bits": 12}, "bits=12"),
    ],
)
def test_wrong_json_is_named(data, message):
    with pytest.raises(ValueError, match=message):
        quantizer_from_json(data)


def test_mixture_json_round_trip():
    for mixture in (
        Mixture((dqa.MinMax(2), dqa.MinMax(4), dqa.MinMax(8)), dqa.Attention(ddof=0)),
        Mixture((dqa.BWN(), dqa.TWN(), dqa.FullPrecision()), dqa.BinaryRelax()),
        Mixture((dqa.TWN(),), dqa.Single()),
    ):
        assert Mixture.from_json(mixture.to_json()) == mixture


def test_numpy_numbers_become_pythons():
    quantizer = dqa.MinMax(np.int64(2), channel_axis=np.int32(1))
    assert json.loads(json.dumps(quantizer.to_json())) == dqa.MinMax(2, channel_axis=1).to_json()
    schedule = dqa.TemperatureSchedule(steps=np.int64(100))
    assert json.loads(json.dumps(schedule.to_json()))["steps"] == 100
    attention = dqa.Attention(init=np.array([1.0, 0.5, 0.25]))
    assert attention == dqa.Attention(init=(1.0, 0.5, 0.25))
    assert hash(attention) == hash(dqa.Attention(init=[1.0, 0.5, 0.25]))


def test_values_are_immutable():
    for value in (*QUANTIZERS, dqa.Attention(), dqa.TemperatureSchedule(10)):
        field = next(iter(dataclasses.fields(value)), None)
        if field is not None:
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(value, field.name, 3)


def test_registering_a_name_twice_is_refused():
    registry: Registry = Registry("thing")
    one = type("Thing", (), {"__module__": "one"})
    registry.register(one)
    registry.register(one)
    with pytest.raises(ValueError, match="a thing named Thing exists already in one"):
        registry.register(type("Thing", (), {"__module__": "two"}))


def cpu_seconds(statement):
    """User and system time of a process: on a busy machine wall time measures the others."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", statement], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_import_takes_at_most_50_ms_more_than_nnabla():
    """The least of several, because other work on the machine only ever adds to it."""
    least = dict.fromkeys(["nnabla", "nnabla_dqa"], float("inf"))
    for _ in range(7):
        for name, seconds in least.items():
            least[name] = min(seconds, cpu_seconds(f"import {name}"))
    assert least["nnabla_dqa"] - least["nnabla"] < 0.05


def test_import_does_not_load_what_only_some_need():
    statement = (
        "import sys, nnabla_dqa\n"
        "rooms = ('graph', 'nnp', 'recipes', 'reporting', 'solver', 'training')\n"
        "later = ('matplotlib', 'sklearn', 'tqdm', *(f'nnabla_dqa.{room}' for room in rooms))\n"
        "loaded = [m for m in later if m in sys.modules]\n"
        "assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", statement], check=True)


def test_all_public_names_are_there():
    assert [name for name in dqa.__all__ if getattr(dqa, name, None) is None] == []
    assert set(dqa._LATER) <= set(dqa.__all__) <= set(dir(dqa))


def output_of(*arguments, **options):
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=True, **options
    )
    return done.stdout, done.stderr


def test_the_package_runs_as_quietly_as_the_command():
    command = "import sys, nnabla_dqa_command as c; sys.argv = ['x', '--version']; c.main()"
    expected = (f"nnabla_dqa {dqa.__version__}\n", "")
    assert output_of("-c", command) == expected
    assert output_of("-m", "nnabla_dqa", "--version") == expected


def test_other_programs_keep_their_messages(tmp_path):
    """Also one that Python looks for by ``-m`` while its package imports this one."""
    (tmp_path / "program").mkdir()
    (tmp_path / "program" / "__init__.py").write_text("import nnabla_dqa\n")
    (tmp_path / "program" / "part.py").write_text(
        "import logging\nlogging.basicConfig(level='INFO')\nlogging.info('begun')\n"
    )
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    _, told = output_of("-m", "program.part", env={**os.environ, "PYTHONPATH": path})
    assert told.endswith("begun\n")


@pytest.fixture
def described(monkeypatch):
    """What setup.py tells setuptools."""
    found = {}
    monkeypatch.setattr(setuptools, "setup", found.update)
    runpy.run_path(str(ROOT / "setup.py"))
    return found


def test_there_is_one_version(described):
    assert described["version"] == dqa.__version__


@pytest.mark.parametrize("version", ["110", "116", "120"])
def test_extras_name_the_cuda_extension_of_the_same_nnabla(described, version):
    (nnabla,) = (line for line in described["install_requires"] if line.startswith("nnabla"))
    extension = nnabla.replace("nnabla", f"nnabla-ext-cuda{version}")
    assert described["extras_require"][f"cuda{version}"] == [extension]


def test_messages_name_extras_that_exist(described):
    text = (ROOT / "nnabla_dqa" / "training" / "loss_scaler.py").read_text("utf-8")
    extras = {extra for extra in described["extras_require"] if extra.startswith("cuda")}
    assert set(re.findall(r"cuda1\d\d", text)) == extras


def test_setup_says_in_one_line_what_to_install(tmp_path):
    """On a machine whose only interpreters are too new, or dead shims."""
    copy = tmp_path / "clone"
    (copy / "scripts").mkdir(parents=True)
    for name in ("scripts/setup.sh", "setup.py", "pyproject.toml"):
        (copy / name).write_bytes((ROOT / name).read_bytes())
    shutil.copytree(
        ROOT / "nnabla_dqa" / "backends" / "kernels", copy / "nnabla_dqa" / "backends" / "kernels"
    )
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("sh", "cat", "cksum", "ls", "awk", "dirname", "rm"):
        found = next(Path(p) / name for p in ("/bin", "/usr/bin") if (Path(p) / name).exists())
        (tools / name).symlink_to(found)
    for name in ("python3.10", "python3"):
        shim = tools / name
        shim.write_text("#!/bin/sh\necho 'pyenv: command not found' >&2\nexit 127\n")
        shim.chmod(0o755)
    done = subprocess.run(
        ["sh", "scripts/setup.sh"],
        cwd=copy,
        capture_output=True,
        text=True,
        env={"PATH": str(tools), "HOME": str(tmp_path)},
    )
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("No CPython 3.9 or 3.10 found")
    assert not (copy / ".venv").exists()


def test_setup_does_nothing_the_second_time():
    stamp = ROOT / ".venv" / ".installed"
    kernels = sorted(ROOT.glob("nnabla_dqa/backends/kernels/*"))
    described = b"".join(
        path.read_bytes() for path in (ROOT / "setup.py", ROOT / "pyproject.toml", *kernels)
    )
    wanted = subprocess.run(["cksum"], input=described, check=True, capture_output=True).stdout
    if not stamp.exists() or stamp.read_bytes().strip() != wanted.strip():
        # It would remove the environment that this test runs in.
        pytest.skip("this environment was not made by `make setup` from this setup.py")
    start = time.perf_counter()
    subprocess.run(["sh", "scripts/setup.sh"], cwd=ROOT, check=True, env=dict(os.environ))
    assert time.perf_counter() - start < 2
