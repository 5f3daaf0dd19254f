"""The cache table: every published number comes out of the layers."""

from linrec.evals.pages.cache_table import CONSTANT_ROWS, D_MODEL, cache_table, rows
from linrec.layers import LAYERS


def test_published_columns_are_reproduced():
    published = [row for row in rows() if row.published]
    assert len(published) == 18
    for row in published:
        assert row.published is not None
        assert row.cache == row.published[0], row.name
        assert round(row.total / 1e6) == row.published[1], row.name
        assert row.constant == 0


def test_one_constant_fits_all_rows_and_only_a_narrow_range_does():
    low, high = 0.0, float("inf")
    for row in rows():
        if row.published is None or "rank" in row.name:  # those ranks are not published
            continue
        without = row.total - CONSTANT_ROWS * D_MODEL
        low = max(low, ((row.published[1] - 0.5) * 1e6 - without) / D_MODEL)
        high = min(high, ((row.published[1] + 0.5) * 1e6 - without) / D_MODEL)
    assert 159_625 < low < CONSTANT_ROWS < high < 159_665


def test_linear_layers_keep_a_constant_state():
    by_name = {row.name: row for row in rows()}
    for name, layer in LAYERS.items():
        if not layer.state_grows and name in by_name:
            assert by_name[name].cache == 0 and by_name[name].constant > 0
    heads, width = 16, 128
    assert by_name["retnet"].constant == heads * width * 2 * width
    assert by_name["TPA, rank 2"].cache == 2 * 2 * (16 + 128)


def test_table_is_markdown():
    lines = cache_table().splitlines()
    assert len(lines) == 2 + len(rows())
    assert any(line.startswith("| MLA | 576 | 0 | 13.76M | 894 | 894 |") for line in lines)
