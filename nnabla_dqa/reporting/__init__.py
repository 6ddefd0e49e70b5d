"""Pictures and tables of a training."""

from nnabla_dqa.reporting.history import AttentionHistory, Curve
from nnabla_dqa.reporting.plots import plot_attention

__all__ = ["AttentionHistory", "Curve", "plot_attention"]
