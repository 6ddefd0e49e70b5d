"""Data sets in the forms people have them, as mini-batches of float32."""

from nnabla_dqa.data.arrays import ArrayData
from nnabla_dqa.data.augment import CropFlip
from nnabla_dqa.data.base import Data, DataError, MissingSubsetError
from nnabla_dqa.data.open import open_data
from nnabla_dqa.data.photos import open_photos
from nnabla_dqa.data.prefetch import Prefetcher
from nnabla_dqa.data.sampler import iterate

__all__ = [
    "ArrayData",
    "CropFlip",
    "Data",
    "DataError",
    "MissingSubsetError",
    "Prefetcher",
    "iterate",
    "open_data",
    "open_photos",
]
