"""The comparison with PyTorch, with a stand-in for its process."""

from __future__ import annotations

import json
import sys

import pytest

from benchmarks import peers
from nnabla_dqa.onednn import library

STAND_IN = """#!{python}
import json, sys
print(json.dumps(dict(torch="1", brevitas="2")), flush=True)
for line in sys.stdin:
    print(json.dumps(dict(ms=dict(float=1.0, brevitas=2.0)[line.strip()])), flush=True)
"""


@pytest.mark.skipif(bool(library.why_not()), reason=library.why_not())
def test_all_take_turns(tmp_path, capsys):
    python = tmp_path / "python"
    python.write_text(STAND_IN.format(python=sys.executable))
    python.chmod(0o755)
    target = tmp_path / "peers.json"
    options = ["--python", str(python), "--threads", "1", "--batch", "2", "--width", "0.05"]
    peers.main([*options, "--rounds", "2", "-o", str(target)])
    (entry,) = json.loads(target.read_text())["entries"]
    assert set(entry["ms"]) == {*peers.OURS.values(), peers.FLOAT, peers.BREVITAS}
    assert entry["ms"][peers.BREVITAS] == {"median": 2.0, "low": 2.0, "high": 2.0, "runs": 2}
    assert entry["dqa_to"]["ours, DQA 2/4/8"]["median"] == 1.0
    assert entry["dqa_to"][peers.FLOAT]["median"] > 1
    assert "| 1 | Brevitas, 2 bits | 2 (2 - 2) |" in capsys.readouterr().out


def test_an_environment_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        peers.Peer(tmp_path / "python", 1, 2, 1.0)
