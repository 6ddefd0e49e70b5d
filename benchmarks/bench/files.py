"""Converting and deploying growing nets, and what importing the package takes."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any, Dict, List, Tuple

import nnabla as nn
import numpy as np
from nnabla.utils.save import save

import nnabla_dqa as dqa
from benchmarks.bench.measuring import clock, digits
from nnabla_dqa.models import build

ROOT = Path(__file__).resolve().parents[2]

_IMPORT = """
import logging, time
logging.disable(logging.INFO)
start = time.process_time()
import nnabla
middle = time.process_time()
import nnabla_dqa
end = time.process_time()
clock = time.perf_counter()
from nnabla_dqa.backends.cpu import library
library()
print(middle - start, end - middle, time.perf_counter() - clock)
"""


def convert_and_deploy(nets: Tuple[Tuple[str, float], ...]) -> List[Dict[str, Any]]:
    """Seconds of ``convert_file`` and ``deploy_file`` for each net, and MB of the files."""
    return [_one_net(model, width) for model, width in nets]


def _one_net(model: str, width: float) -> Dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights = _save_float(folder / "float.nnp", model, width)
        converting = partial(dqa.convert_file, folder / "float.nnp", folder / "dqa.nnp")
        deploying = partial(
            dqa.deploy_file, folder / "dqa.nnp", folder / "small.nnp", allow_untrained=True
        )
        seconds = [clock(converting) / 1000, clock(deploying) / 1000]
        sizes = {path.stem: path.stat().st_size for path in folder.glob("*.nnp")}
    return {
        "net": f"{model}, width {width:g}",
        "parameters": weights,
        "convert_s": digits(seconds[0], 3),
        "deploy_s": digits(seconds[1], 3),
        "float_mb": digits(sizes["float"] / 1e6),
        "converted_mb": digits(sizes["dqa"] / 1e6),
        "deployed_mb": digits(sizes["small"] / 1e6),
    }


def _save_float(path: Path, model: str, width: float) -> int:
    scope: Dict[str, Any] = {}
    size = int(model.rsplit("_", 1)[1])
    with nn.parameter_scope("", scope), nn.auto_forward(False):
        x = nn.Variable((1, 3, size, size))
        y = build(model, x, 10, False, None, width, rng=np.random.RandomState(0))
        contents = {
            "networks": [
                {"name": "net", "batch_size": 1, "outputs": {"y": y}, "names": {"x": x}},
            ],
            "executors": [{"name": "run", "network": "net", "data": ["x"], "output": ["y"]}],
        }
        save(str(path), contents)
        return sum(int(p.size) for p in nn.get_parameters().values())


def import_times(rounds: int) -> Dict[str, Any]:
    """Processor seconds of the imports in fresh processes, and of the kernels' first use."""
    taken = []
    for _ in range(rounds):
        done = subprocess.run(
            [sys.executable, "-c", _IMPORT], cwd=ROOT, capture_output=True, text=True, check=True
        )
        taken.append([float(word) for word in done.stdout.split()[-3:]])
    nnabla, package, library = (list(column) for column in zip(*taken))
    return {
        "nnabla_s": digits(statistics.median(nnabla), 3),
        "nnabla_dqa_s": digits(statistics.median(package), 3),
        "to_nnabla": digits(statistics.median(p / n for p, n in zip(package, nnabla)), 3),
        "kernels_ms": digits(1000 * statistics.median(library), 3),
        "processes": rounds,
    }
