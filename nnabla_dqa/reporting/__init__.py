"""What a user sees of the layers: tables and pictures."""

from nnabla_dqa.reporting.summary import LayerReport, Report, report

__all__ = ["LayerReport", "Report", "report"]
