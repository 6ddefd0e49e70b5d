"""A row of Table 1 of the DQA paper, or of its later version: nnabla-dqa train with its recipe.

python examples/cifar/train.py --rows
python examples/cifar/train.py --row dqa-minmax --dataset cifar10 \\
    --data cifar-10-batches-bin -o runs/dqa-minmax-0 --seed 0
python examples/cifar/train.py -o runs/dqa-minmax-0 --resume
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

# NNabla greets on stderr when it is imported.
logging.disable(logging.INFO)
HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from rows import main  # noqa: E402

NAMES = (
    *("cifar10", "cifar100", "cifar10-activations", "cifar100-activations"),
    *("cifar10-qn", "cifar10-parq"),
)
FOLDERS = {name: HERE / "recipes" / name for name in NAMES}

if __name__ == "__main__":
    sys.exit(main(str(__doc__), FOLDERS))
