"""What a user sees of the layers: tables and pictures."""

from nnabla_dqa.reporting.history import AttentionHistory, Curve
from nnabla_dqa.reporting.plots import plot_attention
from nnabla_dqa.reporting.summary import LayerReport, Report, report

__all__ = ["AttentionHistory", "Curve", "LayerReport", "Report", "plot_attention", "report"]
