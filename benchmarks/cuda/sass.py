"""Machine code of NVIDIA GPUs as nvdisasm prints it: what instructions there are, in which loop."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

# Multiply-adds, and all arithmetic on floats, of one instruction; the pairs of sm_100 count twice.
FUSED = {"FFMA": 1, "DFMA": 1, "FFMA2": 2}
FLOATING = FUSED | {"FADD": 1, "FMUL": 1, "DADD": 1, "DMUL": 1, "FADD2": 2, "FMUL2": 2}
# Generic accesses: the compiler did not see that the memory is global.
GLOBAL_LOADS, GLOBAL_STORES, GENERIC = ("LDG", "LD"), ("STG", "ST"), ("LD", "ST")
SHARED = ("LDS", "STS")

_CODE = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][\w.]*)\s*([^;]*);", re.MULTILINE)
_LINE = re.compile(rf"^\.text\.(?P<kernel>\S+):$|^(?P<label>\.L\w+):$|{_CODE.pattern}", re.MULTILINE)
_LABEL = re.compile(r"\.L_x_\d+")


@dataclass
class Instruction:
    name: str  # with what follows it: LDG.E.128
    operands: str = ""
    conditional: bool = False

    @property
    def stem(self) -> str:
        return self.name.split(".")[0]

    @property
    def bytes(self) -> int:
        """Of a load or store, for one thread."""
        for width, suffix in ((32, "256"), (16, "128"), (8, "64"), (2, "16"), (1, "8")):
            if re.search(rf"\.[USBF]?{suffix}\b", self.name):
                return width
        return 4

    @property
    def may_continue(self) -> bool:
        """With the instruction that follows."""
        if self.stem in ("EXIT", "RET", "BRX", "JMX", "JMP"):
            return self.conditional
        # BRA.U and BRA.DIV, and BRA with a predicate of its own, ask before they jump.
        return self.stem != "BRA" or self.conditional or "," in self.operands

    @property
    def targets(self) -> list[str]:
        return _LABEL.findall(self.operands) if self.stem in ("BRA", "BRX", "JMP", "JMX") else []


@dataclass
class Block:
    """Instructions that run one after the other, and the blocks that may follow."""

    code: list[Instruction] = field(default_factory=list)
    next: list[int] = field(default_factory=list)


def parse(text: str) -> dict[str, list[Block]]:
    """The blocks of each kernel, by its mangled name."""
    kernels: dict[str, list[Block]] = {}
    labels: dict[str, int] = {}
    blocks: list[Block] = []

    def connect() -> None:
        for n, block in enumerate(blocks):
            last = block.code[-1] if block.code else Instruction("NOP")
            block.next = [labels[target] for target in last.targets if target in labels]
            if last.may_continue and n + 1 < len(blocks):
                block.next.append(n + 1)

    for match in _LINE.finditer(text):
        if match["kernel"]:
            connect()
            blocks, labels = [Block()], {}
            kernels[match["kernel"]] = blocks
        elif not blocks:
            continue  # what precedes the first kernel
        elif match["label"]:
            if blocks[-1].code:
                blocks.append(Block())
            labels[match["label"]] = len(blocks) - 1
        else:
            _, predicate, name, operands = match.groups()[2:]
            blocks[-1].code.append(Instruction(name, operands, predicate is not None))
            if blocks[-1].code[-1].targets or not blocks[-1].code[-1].may_continue:
                blocks.append(Block())
    connect()
    return kernels


def loops(blocks: list[Block]) -> list[set[int]]:
    """The blocks of each loop, inner loops included; those that begin alike are one."""
    before: dict[int, list[int]] = {n: [] for n in range(len(blocks))}
    for n, block in enumerate(blocks):
        for after in block.next:
            before[after].append(n)
    bodies: dict[int, set[int]] = {}
    for tail, head in _back_edges(blocks):
        body = bodies.setdefault(head, {head})
        stack = [tail]
        while stack:
            n = stack.pop()
            if n not in body:
                body.add(n)
                stack.extend(before[n])
    return list(bodies.values())


def _back_edges(blocks: list[Block]) -> list[tuple[int, int]]:
    """Edges to a block that is on the way from the first one."""
    found, seen, on_the_way = [], {0}, {0}
    stack = [(0, iter(blocks[0].next))]
    while stack:
        n, rest = stack[-1]
        for after in rest:
            if after in on_the_way:
                found.append((n, after))
            elif after not in seen:
                seen.add(after)
                on_the_way.add(after)
                stack.append((after, iter(blocks[after].next)))
                break
        else:
            on_the_way.discard(n)
            stack.pop()
    return found


def main_loop(blocks: list[Block]) -> list[Instruction]:
    """Of the loop with most multiply-adds, those of the loops inside it not counted, the instructions; else
    of all."""
    owner: dict[int, int] = {}
    bodies = sorted(loops(blocks), key=len, reverse=True)
    for number, body in enumerate(bodies):  # the smaller one, being inside, has the last word
        owner |= dict.fromkeys(body, number)
    code: dict[int, list[Instruction]] = {}
    for n, number in sorted(owner.items()):
        code.setdefault(number, []).extend(blocks[n].code)
    largest = max(code.values(), key=fused, default=[])
    return largest if fused(largest) else [i for block in blocks for i in block.code]


def fused(code: list[Instruction]) -> int:
    return sum(FUSED.get(i.stem, 0) for i in code)


def fused_share(code: list[Instruction]) -> float | None:
    """Of the arithmetic on floats, the share that is multiply-adds; None: there is none."""
    floating = sum(FLOATING.get(i.stem, 0) for i in code)
    return round(fused(code) / floating, 3) if floating else None


def widths(code: list[Instruction], stems: tuple[str, ...]) -> dict[str, int]:
    """How many accesses of how many bytes."""
    counted = Counter(i.bytes for i in code if i.stem in stems)
    return {str(width): counted[width] for width in sorted(counted)}


def bytes_per_fused(code: list[Instruction], stems: tuple[str, ...]) -> float | None:
    count = fused(code)
    return round(sum(i.bytes for i in code if i.stem in stems) / count, 3) if count else None
