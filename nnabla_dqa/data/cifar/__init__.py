"""CIFAR-10 and CIFAR-100 in every form in which they are published."""

from nnabla_dqa.data.cifar.open import find_cifar, open_cifar_archive

__all__ = ["find_cifar", "open_cifar_archive"]
