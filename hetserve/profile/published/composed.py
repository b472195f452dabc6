"""Layers put together from two collections: vidur's dense part and aiconfigurator's attention, of the same device, heads and tokens."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from hetserve.catalog import rows as catalog
from hetserve.cost.fits import Table
from hetserve.cost.step import Rank
from hetserve.profile.published import aiconfigurator, vidur
from hetserve.profile.published.steps import StepTable

SOURCE = f"{vidur.SOURCE} + {aiconfigurator.SOURCE}"


def steps(tables: Iterable[Table], dense: Iterable[StepTable]) -> list[StepTable]:
    """Every dense part of vidur's with the attention of its heads, where that was measured; between measured tokens by a straight line."""
    attention = {(table.device, table.kind): table for table in tables if table.source == aiconfigurator.SOURCE}
    found = []
    for step in dense:
        table = attention.get((step.device, step.phase))
        if step.source == vidur.SOURCE and step.phase not in step.parts and table is not None:
            found.append(_joined(step, table))
    return [step for step in found if len(step)]


def _joined(step: StepTable, table: Table) -> StepTable:
    rank = Rank(catalog.model(step.model), step.tp)
    measured = step.sequences * step.new
    order = np.argsort(measured)
    if step.phase == "decode":
        count, context, new = table.inputs["sequences"], table.inputs["longest"], np.ones(len(table))
    else:
        new = table.inputs["longest"]  # whole prompts
        count, context = table.inputs["rows"] / new, new
    mine = (table.shapes == f"{rank.q_heads}x{rank.kv_heads}") & (count * new >= measured.min()) & (count * new <= measured.max())
    count, context, new, attention_s = (values[mine] for values in (count, context, new, table.seconds))
    seconds = attention_s + np.interp(count * new, measured[order], step.seconds[order])
    parts = (*step.parts, step.phase)
    return replace(step, source=SOURCE, parts=parts, sequences=count, new=new, before=context - new, seconds=seconds)
