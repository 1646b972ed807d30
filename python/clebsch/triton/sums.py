"""Source of the sums over the edges of a sender: rows of work space, one for each position, to nodes."""

from __future__ import annotations

from .source import Source, Writer

__all__ = ["sender_sums"]


def sender_sums(dtype: str, columns: int) -> Source:
    """out[node] = the sum of the rows of its edges whose positions lie in [first, last), in the order of the
    graph; added to what is there where `adds` is not 0."""
    write = Writer(dtype)
    write.line("owner = tl.program_id(0).to(tl.int64)")
    write.tile(columns)
    place = f"{write.row('out', 'owner')} + lane"
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
        contiguous=True,
        adds=True,
    )
