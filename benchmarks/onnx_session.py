"""Sessions of ONNX Runtime on one thread.

python -m benchmarks.onnx_session FILE    # milliseconds and MiB that loading it takes, on Linux
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import onnxruntime


def session(path: Path) -> onnxruntime.InferenceSession:
    """A file in ONNX Runtime, on one thread of the CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def peak() -> float:
    """MiB of memory that this process had at most."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024


def main() -> None:
    before = peak()
    start = time.perf_counter()
    session(Path(sys.argv[1]))
    took = 1000 * (time.perf_counter() - start)
    print(took, peak() - before)


if __name__ == "__main__":
    main()
