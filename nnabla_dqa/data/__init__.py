"""Data sets in the forms people have them, as mini-batches of float32."""

from nnabla_dqa.data.arrays import ArrayData
from nnabla_dqa.data.base import Data, DataError, MissingSubsetError
from nnabla_dqa.data.iteration import iterate
from nnabla_dqa.data.opening import open_data

__all__ = ["ArrayData", "Data", "DataError", "MissingSubsetError", "iterate", "open_data"]
