"""Images in class folders, of one size or photos of any size."""

from nnabla_dqa.data.photos.photos import Photos, open_photos

__all__ = ["Photos", "open_photos"]
