"""Warnings name the line that a user wrote, however deep in the package they come up."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import warnings
from pathlib import Path

import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as NPF
import pytest

import nnabla_dqa as dqa
import nnabla_dqa.parametric_functions as PF
from nnabla_dqa._util import warn as helper
from nnabla_dqa._util.warn import warn
from nnabla_dqa.backends import cpu, select

ROOT = Path(__file__).resolve().parents[2]
ONE = [dqa.MinMax(2)]
LAYERS = {
    "affine": ((2, 3), (4,)),
    "convolution": ((1, 2, 5, 5), (4, (3, 3))),
    "deconvolution": ((1, 2, 5, 5), (4, (3, 3))),
    "depthwise_convolution": ((1, 2, 5, 5), ((3, 3),)),
    "depthwise_deconvolution": ((1, 2, 5, 5), ((3, 3),)),
    "embed": ((2, 3), (4, 5)),
}


def here():
    return sys._getframe(1).f_lineno


@pytest.fixture
def no_kernels(monkeypatch):
    """Every layer that is built warns."""
    monkeypatch.delenv("NNABLA_DQA_BACKEND", raising=False)
    monkeypatch.setattr(cpu, "why_not", lambda: "its kernels were not compiled")
    monkeypatch.setattr(select, "_told", set())


def place(caught):
    (found,) = caught
    return found.filename, found.lineno


@pytest.mark.parametrize("name", [None, "l"])
@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer(kind, name, no_kernels):
    shape, arguments = LAYERS[kind]
    x, layer = nn.Variable(shape), getattr(PF, f"dqa_{kind}")
    with pytest.warns(dqa.BackendWarning) as caught:
        _, line = layer(x, *arguments, quantizers=ONE, name=name), here()
    assert place(caught) == (__file__, line)


def test_a_graph_that_is_converted(no_kernels):
    y = F.tanh(NPF.affine(nn.Variable((2, 3)), 4))
    with pytest.warns(dqa.BackendWarning) as caught:
        _, line = dqa.convert(y, [dqa.Rule("*", "minmax:2")]), here()
    assert place(caught) == (__file__, line)


def test_a_layer_that_is_not_converted():
    x = nn.Variable((2, 3))
    y = F.affine(NPF.affine(x, 4), F.constant(1, (4, 5)))
    with pytest.warns(UserWarning, match="skipped: ") as caught:
        _, line = dqa.convert(y), here()
    assert place(caught) == (__file__, line)


def test_a_deployment(tmp_path):
    x = nn.Variable((2, 3))
    y = PF.dqa_affine(NPF.batch_normalization(x), 4, quantizers=ONE)
    path = tmp_path / "net.nnp"
    options = {"allow_untrained": True}
    with pytest.warns(UserWarning, match="batch statistics") as caught:
        _, line = dqa.deploy(str(path), {"x": x}, {"y": y}, **options), here()
    assert place(caught) == (__file__, line)


@contextlib.contextmanager
def block():
    warn("from a block", UserWarning)
    yield


def as_ours(monkeypatch):
    """This file counts as one of the package."""
    monkeypatch.setattr(helper, "_FOLDERS", (*helper._FOLDERS, __file__))


def test_a_block(monkeypatch):
    """``contextlib`` calls what stands between ``with`` and the block."""
    scope = {"block": block}
    code = compile("\n\nwith block(): pass", "a_user.py", "exec")
    as_ours(monkeypatch)
    with pytest.warns(UserWarning, match="from a block") as caught:
        exec(code, {**scope, "__name__": "a_user"})
    assert place(caught) == ("a_user.py", 3)


def test_filters_see_the_users_module(monkeypatch):
    as_ours(monkeypatch)
    scope = {"__name__": "a_user", "block": block}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", module="a_user")
        exec(compile("with block(): pass", "a_user.py", "exec"), scope)


def test_once_for_each_line(monkeypatch):
    as_ours(monkeypatch)
    scope = {"__name__": "a_user", "block": block}
    code = compile("for _ in range(9):\n  with block(): pass\nwith block(): pass", "u", "exec")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        exec(code, scope)
    assert [found.lineno for found in caught] == [2, 3]


def test_a_script_given_on_the_command_line():
    """Its file is called ``<string>``, as that of the layers that NNabla makes."""
    script = (
        "import nnabla as nn, nnabla_dqa as dqa, nnabla_dqa.parametric_functions as PF\n"
        "from nnabla_dqa.backends import cpu\n"
        "cpu.why_not = lambda: 'none'\n"
        "PF.dqa_affine(nn.Variable((2, 3)), 4, quantizers=[dqa.MinMax(2)])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert "<string>:4: BackendWarning: " in done.stderr


def test_a_stack_without_a_user(monkeypatch):
    monkeypatch.setattr(helper, "_FOLDERS", ("",))
    with pytest.warns(UserWarning, match="all ours") as caught:
        _, line = warn("all ours", UserWarning), here()
    assert place(caught) == (__file__, line)
