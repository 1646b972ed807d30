"""Source of the sums over the edges of a sender: rows of work space, one for each position, to nodes."""

from __future__ import annotations

from clebsch.algebra.plan import ProductPlan

from .operands import Operands
from .source import Source, Writer

__all__ = ["sender_sums"]


def sender_sums(plan: ProductPlan, dtype: str) -> Source:
    """out[node] = the sum of the rows of its edges whose positions lie in [first, last), in the order of the
    graph; added to what is there where `adds` is not 0.

    Rows have the copies of a block innermost, whatever the layout of the plan, in which `out` is."""
    write, columns = Writer(dtype), plan.irreps_in1.dim
    write.line("owner = tl.program_id(0).to(tl.int64)")
    write.tile(columns)
    write.line("column = lane")
    for block in Operands(plan).blocks_of_x() if plan.layout == "mul_ir" else ():
        if block.dim > 1 and block.mul > 1:
            begin, end = block.offset, block.offset + block.mul * block.dim
            there = (
                f"{begin} + (lane - {begin}) % {block.mul} * {block.dim} + (lane - {begin}) // {block.mul}"
            )
            write.line(f"column = tl.where((lane >= {begin}) & (lane < {end}), {there}, column)")
    place = f"{write.row('out', 'owner')} + column"
    adds = write.argument("adds")
    write.load("sum", place, f"lane < {adds} * {columns}")
    first, last = write.argument("first"), write.argument("last")
    with write.block(write.edges("sender").replace("position", "outgoing")):
        write.line("position = tl.load(outgoing_list + outgoing)")
        inside = f"made_for_device & (position >= {first}) & (position < {last})"
        write.line(f"inside = lane < tl.where({inside}, {columns}, 0)")
        write.load("row", f"{write.row('parts', f'(position - {first})')} + lane", "inside")
        write.line("sum += row")
    write.store(place, "sum", "there")
    return write.finish(
        "sender_sums",
        ["The rows of the edges of each sender, added up in the order of the graph."],
        lanes=columns,
        values=4,
        wide=True,
        adds=True,
    )
