"""Networks of which a file runs a part only: an auxiliary head is trained, but not deployed."""

from __future__ import annotations

import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as PF
import numpy as np
import pytest
from nnabla.utils.save import save

import nnabla_dqa as dqa
from nnabla_dqa.nnp.deploy import deploy_file
from nnabla_dqa.nnp_format.archive import Archive
from nnabla_dqa.nnp_format.members import NNPError
from tests.training.files import one_line


def with_head(folder, rules="minmax:2"):
    """A converted net whose training network has a head that is not run, and a recipe."""
    rng = np.random.RandomState(0)
    x, t = nn.Variable((4, 8)), nn.Variable((4, 1))
    h = F.relu(PF.affine(x, 16, name="f1"))
    y, head = PF.affine(h, 3, name="f2"), PF.affine(h, 3, name="aux")
    loss = F.mean(F.softmax_cross_entropy(y, t)) + F.mean(F.softmax_cross_entropy(head, t))
    main = {"name": "Main", "batch_size": 4, "outputs": {"l": loss}, "names": {"x": x, "t": t}}
    run = {"name": "Run", "batch_size": 4, "outputs": {"z": F.softmax(y)}, "names": {"x": x}}
    executor = {"name": "Run", "network": "Run", "data": ["x"], "output": ["z"]}
    save(str(folder / "f.nnp"), {"networks": [main, run], "executors": [executor]})
    nn.clear_parameters()
    np.savez(folder / "d.npz", x=rng.randn(32, 8).astype(np.float32), y=rng.randint(0, 3, (32, 1)))
    dqa.convert_file(folder / "f.nnp", folder / "c.nnp", rules)
    recipe = dqa.Recipe(str(folder / "d.npz"), str(folder / "c.nnp"), epochs=1, batch_size=8)
    return folder / "c.nnp", recipe


def test_what_is_not_run_is_not_deployed(tmp_path):
    _, recipe = with_head(tmp_path)
    result = dqa.train(recipe, folder=tmp_path / "run")
    assert dqa.check_file(result.deployed).ok
    archive = Archive.read(result.deployed)
    assert [entry["name"] for entry in archive.metadata["tensors"]] == [
        "f1/affine/W",
        "f2/affine/W",
    ]
    assert "aux/affine/W" not in archive.parameters


def test_nothing_quantized_is_run(tmp_path):
    source, recipe = with_head(tmp_path, [dqa.Rule("aux/*", "bwn"), dqa.Rule("f*", "float")])
    wanted = "c.nnp: no quantized layer is in the network that is run (Run)"
    with pytest.raises(NNPError) as caught:
        dqa.train(recipe, folder=tmp_path / "run")
    assert one_line(caught).endswith(wanted)
    assert not (tmp_path / "run").exists()
    with pytest.raises(NNPError) as caught:
        deploy_file(source, tmp_path / "o.nnp", allow_untrained=True)
    assert one_line(caught).endswith(wanted)
    assert not (tmp_path / "o.nnp").exists()


def test_a_batch_of_no_samples(tmp_path):
    source, _ = with_head(tmp_path)
    with pytest.raises(ValueError, match="batch_size must be a whole number from 1 on; got 0"):
        deploy_file(
            source,
            tmp_path / "o.nnp",
            allow_untrained=True,
            samples=[{"x": np.zeros((0, 8), np.float32)}],
        )
