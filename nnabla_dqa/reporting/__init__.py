"""Pictures and tables of a training, and reports of runs and files."""

from nnabla_dqa.reporting.history import AttentionHistory, Curve
from nnabla_dqa.reporting.page.write import write_report
from nnabla_dqa.reporting.plots import plot_attention

__all__ = ["AttentionHistory", "Curve", "plot_attention", "write_report"]
