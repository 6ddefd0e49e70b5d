"""A rank without MPI: ``python processes.py FOLDER RANK SIZE CASE``; it gathers by files."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path

from nnabla_dqa.parallel import lifeline


def gather_in(folder: Path, rank: int, size: int):
    calls = iter(range(1000))

    def gather(value):
        call = next(calls)
        mine = folder / f"{call}.{rank}"
        mine.with_suffix(f".{rank}.part").write_text(json.dumps(value))
        mine.with_suffix(f".{rank}.part").rename(mine)
        paths = [folder / f"{call}.{other}" for other in range(size)]
        while not all(path.is_file() for path in paths):
            time.sleep(0.01)
        return [json.loads(path.read_text()) for path in paths]

    return gather


def main(folder: str, rank: int, size: int, case: str) -> None:
    lifeline.GRACE = 0.3
    gather = gather_in(Path(folder), rank, size)
    line = lifeline.Lifeline.between(rank, size, gather)
    gather(None)
    if case == "close":
        line.close()
        assert threading.enumerate() == [threading.current_thread()]
        sockets = [
            os.readlink(f"/proc/self/fd/{fd}")
            for fd in os.listdir("/proc/self/fd")
            if os.path.islink(f"/proc/self/fd/{fd}")
        ]
        assert not [one for one in sockets if one.startswith("socket:")]
        return
    if case == "write" and rank == 0:
        with lifeline.critical():
            (Path(folder) / "begun").touch()
            time.sleep(1.5)
            (Path(folder) / "written").touch()
    threading.Event().wait(60)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
