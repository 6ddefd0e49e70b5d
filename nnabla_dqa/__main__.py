"""``python -m nnabla_dqa``."""

import sys

from nnabla_dqa.cli import main

sys.exit(main())
