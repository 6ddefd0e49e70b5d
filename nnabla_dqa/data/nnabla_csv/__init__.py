"""NNabla's CSV data sets, which Neural Network Console reads and writes."""

from nnabla_dqa.data.nnabla_csv.table import open_csv

__all__ = ["open_csv"]
