import re
from pathlib import Path
from typing import get_args

import pytest

from vllm_edsd.config import ServeConfig
from vllm_edsd.observability.catalog import METRICS, VALUES, table

PAGE = Path(__file__).parents[3] / "docs" / "operations" / "metrics.md"
# The table of the labels: the values of each as the page tells them.
ROWS = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| (.*) \|$", PAGE.read_text(), re.MULTILINE)
TOLD = {label: values for labels, values in ROWS for label in re.findall(r"`(\w+)`", labels)}


def test_the_page_has_the_table_of_the_catalogue():
    assert table() in PAGE.read_text(), f"{PAGE} has another table than vllm_edsd.observability.catalog.table() gives"


def test_the_page_tells_what_every_label_may_say():
    assert set(TOLD) == {label for metric in METRICS for label in metric.labels}


@pytest.mark.parametrize("label", VALUES)
def test_the_page_lists_a_labels_values(label):
    assert tuple(re.findall(r'"(\w+)"', TOLD[label])) == VALUES[label]


@pytest.mark.parametrize("label, option", [("mode", "experts_mode"), ("verification", "verification")])
def test_values_are_those_of_the_option(label, option):
    assert VALUES[label] == get_args(ServeConfig.model_fields[option].annotation)
