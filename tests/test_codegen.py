"""The generated C++, as text: every constant is read back and must be the table's, bit for bit."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from clebsch.algebra import codegen, so3

PACKAGE = Path(so3.__file__).parents[1]


def generate(*arguments):
    """Run the generator as the build does: no other package in reach, algebra on top."""
    return subprocess.run(
        [sys.executable, "-S", "-m", "algebra.codegen", *map(str, arguments)],
        cwd=PACKAGE,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generated")
    files = {name: folder / "new" / name for name in ("header.h", "source.cpp", "harmonics.h")}
    run = generate(
        *("--header", files["header.h"], "--source", files["source.cpp"], "--harmonics", files["harmonics.h"])
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
    return {name: path.read_text() for name, path in files.items()}


def array(text, kind):
    return [kind(item) for item in text.replace("\n", " ").split(",")]


def test_header_holds_every_triple_up_to_degree_4(generated):
    text = generated["header.h"]
    blocks = re.findall(r"struct Coupling<(\d+), (\d+), (\d+)> \{(.*?)\n\};", text, re.DOTALL)
    found = [tuple(map(int, block[:3])) for block in blocks]
    assert found == list(codegen.triples(4))
    assert len(found) == 65
    for *degrees, body in blocks:
        entries = so3.coupling(*map(int, degrees))
        size = int(re.search(r"static constexpr int size = (\d+);", body)[1])
        assert size == len(entries)
        for name in ("m1", "m2", "m3"):
            items = re.search(rf"static constexpr unsigned char {name}\[\] = \{{(.*?)\}};", body, re.DOTALL)[
                1
            ]
            assert array(items, int) == [getattr(entry, name) for entry in entries]
        items = re.search(r"static constexpr double value\[\] = \{(.*?)\};", body, re.DOTALL)[1]
        assert array(items, float) == [entry.value for entry in entries]
    assert "inline constexpr int compiled_l_max = 4;" in text
    assert "#pragma once" in text


def test_source_holds_every_triple_up_to_degree_8(generated):
    text = generated["source.cpp"]
    table = dict(re.findall(r"const CouplingEntry (entries_\w+)\[\] = \{(.*?)\};\n", text, re.DOTALL))
    listed = re.search(r"const CouplingBlock coupling_blocks\[\] = \{(.*?)\};\n", text, re.DOTALL)[1]
    blocks = re.findall(r"\{(\d+), (\d+), (\d+), (\d+), (entries_\w+)\}", listed)
    assert [tuple(map(int, block[:3])) for block in blocks] == list(codegen.triples(8))
    assert f"const int coupling_block_count = {len(blocks)};" in text
    assert "const int table_l_max = 8;" in text
    assert '#include "coupling.h"' in text
    assert len({block[4] for block in blocks}) == len(table) == len(blocks)
    for *degrees, size, name in blocks:
        rows = [row.split(", ") for row in re.findall(r"\{([^{}]+)\}", table[name])]
        read = [(int(m1), int(m2), int(m3), float(value)) for m1, m2, m3, value in rows]
        entries = so3.coupling(*map(int, degrees))
        assert read == [(e.m1, e.m2, e.m3, e.value) for e in entries]
        assert int(size) == len(entries)
    assert len(text) < 6e6


def test_harmonics_header_holds_every_order_up_to_degree_32(generated):
    text = generated["harmonics.h"]
    size, items = re.search(
        r"inline constexpr double harmonic_norm\[(\d+)\] = \{(.*?)\};", text, re.DOTALL
    ).groups()
    values = array(items, float)
    assert int(size) == len(values) == 33 * 34 // 2
    for l in range(33):
        squares = so3.harmonic_norms(l)
        start = l * (l + 1) // 2
        assert values[start : start + l + 1] == [so3.signed_root(1, square) for square in squares]
    assert "inline constexpr int harmonic_l_max = 32;" in text


def test_degrees_can_be_chosen(tmp_path):
    header, source, harmonics = (tmp_path / name for name in ("h.h", "s.cpp", "n.h"))
    codegen.main(["--header", str(header), "--unrolled", "1", "--source", str(source), "--table", "2"])
    codegen.main(["--harmonics", str(harmonics), "--harmonics-max", "3"])
    assert header.read_text() == codegen.coupling_header(1)
    assert source.read_text() == codegen.coupling_source(2)
    assert harmonics.read_text() == codegen.harmonics_header(3)
    assert header.read_text().count("struct Coupling<") == 5
    assert "const int table_l_max = 2;" in source.read_text()
    assert "harmonic_norm[10]" in harmonics.read_text()


def test_lines_fit(generated):
    for text in generated.values():
        assert max(map(len, text.splitlines())) <= 150


def test_unchanged_file_is_not_written_again(tmp_path):
    path = tmp_path / "header.h"
    codegen.main(["--header", str(path), "--unrolled", "1"])
    os.utime(path, ns=(1, 1))
    codegen.main(["--header", str(path), "--unrolled", "1"])
    assert path.stat().st_mtime_ns == 1
    codegen.main(["--header", str(path), "--unrolled", "2"])
    assert path.stat().st_mtime_ns != 1


def test_nothing_to_write_is_an_error():
    run = generate()
    assert run.returncode == 2
    assert run.stderr.endswith("nothing to write: give at least one of --header, --source, --harmonics\n")
