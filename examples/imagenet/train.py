"""A row of Table 2 of the DQA paper: nnabla-dqa train with its recipe.

python examples/imagenet/train.py --rows
python examples/imagenet/train.py --row resnet18-dqa-minmax --data imagenet -o runs/imagenet-0
python examples/imagenet/train.py --row imagenette-narrow --data imagenette2 -o runs/imagenette-0
python examples/imagenet/train.py -o runs/imagenet-0 --resume
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

FOLDERS = {
    "ImageNet": HERE / "recipes",
    "ImageNet-activations": HERE / "recipes" / "activations",
}

if __name__ == "__main__":
    sys.exit(main(str(__doc__), FOLDERS))
