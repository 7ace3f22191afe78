from pathlib import Path

from vllm_edsd.observability.catalog import table

PAGE = Path(__file__).parents[3] / "docs" / "operations" / "metrics.md"


def test_the_page_has_the_table_of_the_catalogue():
    assert table() in PAGE.read_text(), f"{PAGE} has another table than vllm_edsd.observability.catalog.table() gives"
