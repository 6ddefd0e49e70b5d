"""Which column of the data feeds which variable of a network."""

from __future__ import annotations

import math
from typing import Iterable, List, Mapping, NamedTuple, Optional, Tuple

import numpy as np

from nnabla_dqa.data import DataError
from nnabla_dqa.quantization.graph_ops import Variable
from nnabla_dqa.recipes.checks import RecipeError
from nnabla_dqa.recipes.parts import DataRecipe

Shape = Tuple[int, ...]
SAMPLES = "x"
LABEL = "y"
"""The column that holds targets, unless the file or the recipe says otherwise."""


class LabelError(DataError):
    """A label is no class number of the network."""


class Feed(NamedTuple):
    """A variable to be filled from a column.

    ``classes`` > 0: it holds class numbers below that. ``channel_last``: it
    holds images (B, H, W, C), the column has them as (C, H, W).
    """

    column: str
    variable: Variable
    classes: int = 0
    channel_last: bool = False


def fill(feeds: Iterable[Feed], batch: Mapping[str, np.ndarray]) -> None:
    """Put a mini-batch into variables.

    What a shorter one leaves free is filled with its last sample, which a
    score must not count.

    Raises:
        LabelError: A label is no class number.
    """
    for column, variable, classes, channel_last in feeds:
        values = batch[column]
        if classes:
            check_labels(column, values, classes)
        missing = variable.shape[0] - len(values)
        if missing > 0:
            values = np.concatenate([values, np.repeat(values[-1:], missing, 0)])
        if channel_last:
            values = values.transpose(0, 2, 3, 1)
        variable.d = values.reshape(variable.shape)


def check_labels(column: str, values: np.ndarray, classes: int) -> None:
    """Raise LabelError unless ``values`` are class numbers below ``classes``."""
    wrong = values[(values < 0) | (values >= classes) | (values != np.floor(values))]
    if wrong.size:
        raise LabelError(
            f"column {column!r} has the label {wrong.flat[0]:g}; the network knows {classes} "
            f"classes, labels are whole numbers from 0 to {classes - 1}"
        )


class Columns:
    """Finds the column for a variable: as the recipe says, else the file, else by order.

    Args:
        shapes: Of one sample, for each column of the data.
        recipe: Its ``inputs`` and ``target`` count.
        variables: The names that inputs can have.
        known: Which column feeds which variable, as the file says.

    Raises:
        RecipeError: ``data.inputs`` names an input that no network has.
        DataError: It names a column that is not there.
    """

    def __init__(
        self,
        shapes: Mapping[str, Shape],
        recipe: DataRecipe,
        variables: Iterable[str],
        known: Mapping[str, str],
    ) -> None:
        self._shapes = shapes
        self._given = dict(recipe.inputs or {})
        self._target = recipe.target
        self._known = known
        self._by_default: Optional[str] = None
        variables = set(variables)
        for name, column in self._given.items():
            if name not in variables:
                raise RecipeError(f"key 'data.inputs': no network has an input {name!r}")
            self._shape(column, f"input {name}")
        if self._target is not None:
            self._shape(self._target, "the target")

    @property
    def default_target(self) -> str:
        """The column of targets if nothing else is known."""
        return self._target or LABEL

    def feed(self, name: str, variable: Variable, classes: int, is_target: bool) -> Feed:
        """For an input of a network.

        ``classes`` > 0: it holds class numbers below that; ``is_target``: a
        loss compares something with it.
        """
        column = self._given.get(name)
        if column is None and is_target:
            column = self._target
        if column is None:
            column = self._known.get(name, name)
            if column not in self._shapes:
                # An input that nothing speaks of: samples are x, targets are y.
                column = self._by_order(name, bool(classes) or is_target)
        return self.feed_column(column, variable, classes, f"input {name}")

    def _by_order(self, name: str, is_target: bool) -> str:
        if is_target:
            return self.default_target
        known = self._known.get(name)
        if self._by_default not in (None, name):
            wanted = f"column {known!r}, as the file says" if known else "a column of its own"
            raise DataError(
                f"input {name} needs {wanted}; the data have {', '.join(self._shapes)}; name one "
                f"in the recipe: data: {{inputs: {{{name}: COLUMN}}}}"
            )
        self._by_default = name
        return SAMPLES

    def feed_column(self, column: str, variable: Variable, classes: int, where: str) -> Feed:
        """For a named column.

        Raises:
            DataError: It is not there, or its samples have another shape.
        """
        shape = self._shape(column, where)
        if not _fits(shape, variable.shape[1:]):
            raise DataError(
                f"column {column!r} has samples of shape {shape}, {where} of the network takes "
                f"{tuple(variable.shape[1:])}"
            )
        return Feed(column, variable, classes)

    def target(self, feeds: List[Feed]) -> str:
        """The column with the targets of a named loss."""
        used = {feed.column for feed in feeds}
        free = [column for column in self._shapes if column not in used]
        if self._target is not None or LABEL in self._shapes or not free:
            return self.default_target
        return free[0]

    def _shape(self, column: str, where: str) -> Shape:
        if column not in self._shapes:
            raise DataError(
                f"no column {column!r} for {where}; the data have {', '.join(self._shapes)}; name "
                f"one: in a recipe data: {{inputs: {{INPUT: COLUMN}}, target: COLUMN}}, for a "
                f"command --input and --target"
            )
        return self._shapes[column]


def _fits(sample: Shape, wanted: Shape) -> bool:
    """Equal but for axes of size 1, or one of them flat."""
    if math.prod(sample) != math.prod(wanted):
        return False
    a, b = ([size for size in shape if size != 1] for shape in (sample, wanted))
    return a == b or len(a) <= 1 or len(b) <= 1
