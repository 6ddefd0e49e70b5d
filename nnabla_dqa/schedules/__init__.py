"""Pure functions of the step: temperature, growth, slope, and when the hard phase begins.

Steps are mini-batches, counted from 1 as in the paper.
"""

from typing import Any

from nnabla_dqa._util.registry import Registry
from nnabla_dqa.schedules.base import Schedule
from nnabla_dqa.schedules.relax import RelaxSchedule
from nnabla_dqa.schedules.sharpening import SharpeningSchedule
from nnabla_dqa.schedules.slope import SlopeSchedule, inverse_slope
from nnabla_dqa.schedules.temperature import TemperatureSchedule, temperature

SCHEDULES: Registry[Any] = Registry("schedule")
for _cls in (TemperatureSchedule, RelaxSchedule, SharpeningSchedule, SlopeSchedule):
    SCHEDULES.register(_cls)
schedule_from_json = SCHEDULES.from_json

__all__ = [
    "SCHEDULES",
    "RelaxSchedule",
    "Schedule",
    "SharpeningSchedule",
    "SlopeSchedule",
    "TemperatureSchedule",
    "inverse_slope",
    "schedule_from_json",
    "temperature",
]
