"""``python -m nnabla_dqa`` is the command ``nnabla-dqa``."""

from nnabla_dqa_command import main

raise SystemExit(main())
