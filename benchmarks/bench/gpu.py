"""The same on a GPU, where there is one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import nnabla as nn

from benchmarks import step_time
from benchmarks.bench.plan import Plan
from benchmarks.bench.steps import mixtures_alone
from nnabla_dqa.backends.cuda.launch import expected
from nnabla_dqa.training.loss_scaler import ContextError, make_context

KINDS = (("float", False), ("half", True))
"""The type and whether the channels are last."""


def usable() -> Tuple[bool, str]:
    """Whether NNabla has a GPU here, or why not, in one line."""
    if not expected():
        return False, "nnabla-ext-cuda is not installed"
    try:
        make_context("cudnn")
    except ContextError as error:
        return False, str(error)
    return True, ""


def measure(
    plan: Plan, context: str = "cudnn", kinds: Sequence[Tuple[str, bool]] = KINDS
) -> List[Dict[str, Any]]:
    """An entry for each type: updates by ``step_time``, and the mixtures alone."""
    return [_one_kind(plan, context, *kind) for kind in kinds]


def _one_kind(plan: Plan, context: str, kind: str, channel_last: bool) -> Dict[str, Any]:
    model, width, batch, steps, warm_up = plan.gpu
    given = ["--model", model, "--width", str(width), "--batch", str(batch), "--context", context]
    given += ["--type-config", kind, "--steps", str(steps), "--warm-up", str(warm_up)]
    given += ["--channel-last"] if channel_last else []
    rows = step_time.measure(step_time.parse(given))
    base = rows[0]["median_ms"]
    backends = ("portable", *(("fused",) if step_time.has_kernels(context) else ()))
    with nn.context_scope(make_context(context, kind)):
        alone = mixtures_alone(model, width, plan.alone_rounds, backends, False, channel_last)
    return {
        "net": f"{model}, width {width:g}, batch {batch}",
        "context": context,
        "type": kind,
        "channel_last": channel_last,
        "device": device_name(),
        "updates": [{**row, "to_float": round(row["median_ms"] / base, 3)} for row in rows],
        "alone": alone,
    }


def device_name() -> Optional[str]:
    """What the driver calls the first GPU, None without one."""
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        for line in path.read_text("utf-8").splitlines():
            if line.startswith("Model:"):
                return line.partition(":")[2].strip()
    return None
