"""How our panels are made: one function for each kind, on grafana-foundation-sdk's builders."""

from typing import Any

from grafana_foundation_sdk.builders import heatmap, prometheus, stat, statetimeline, table, timeseries
from grafana_foundation_sdk.builders.common import (
    GraphThresholdsStyleConfig,
    ReduceDataOptions,
    StackingConfig,
    VizLegendOptions,
    VizTooltipOptions,
)
from grafana_foundation_sdk.builders.dashboard import ThresholdsConfig
from grafana_foundation_sdk.builders.heatmap import HeatmapColorOptions, YAxisConfig
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    BigValueGraphMode,
    GraphThresholdsStyleMode,
    LegendDisplayMode,
    LegendPlacement,
    SortOrder,
    StackingMode,
    TooltipDisplayMode,
    VisibilityMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DataSourceRef,
    DataTransformerConfig,
    DynamicConfigValue,
    Threshold,
    ThresholdsMode,
    ValueMap,
    ValueMappingResult,
)
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
HEIGHT = 8
Queries = dict[str, str]  # legend to PromQL
Steps = list[tuple[float | None, str]]  # from which value on, in which colour


def graph(title: str, meaning: str, queries: Queries, unit: str, width: int = 8, **options: Any) -> timeseries.Panel:
    """Lines over time. Options: `at_least`, `at_most` (of the axis), `line` (a threshold drawn), `stacked`, `dashed` (a
    legend drawn so), `empty` (said where there is no data)."""
    panel = _common(timeseries.Panel(), title, meaning, width).targets(_targets(queries)).unit(unit)
    panel.fill_opacity(30 if options.get("stacked") else 8).show_points(VisibilityMode.NEVER)
    panel.legend(VizLegendOptions().display_mode(LegendDisplayMode.LIST).placement(LegendPlacement.BOTTOM).show_legend(True))
    panel.tooltip(VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING))
    if "at_least" in options:
        panel.min(options["at_least"])
    if "at_most" in options:
        panel.max(options["at_most"])
    if "empty" in options:
        panel.no_value(options["empty"])
    if options.get("stacked"):
        panel.stacking(StackingConfig().mode(StackingMode.NORMAL))
    if "line" in options:
        panel.thresholds(_thresholds([(None, "transparent"), (options["line"], "red")]))
        panel.thresholds_style(GraphThresholdsStyleConfig().mode(GraphThresholdsStyleMode.DASHED))
    if "dashed" in options:
        style = {"fill": "dash", "dash": [8, 8]}
        panel.override_by_regexp(options["dashed"], [DynamicConfigValue("custom.lineStyle", style)])
    return panel


def figure(title: str, meaning: str, query: str, unit: str, steps: Steps, empty: str = "no traffic") -> stat.Panel:
    """One number, coloured by `steps`, over a small line."""
    panel = _common(stat.Panel(), title, meaning, 4).height(4).with_target(_target(query, "{{model_name}}"))
    panel.unit(unit).decimals(2 if unit == "none" else 0).no_value(empty).thresholds(_thresholds(steps))
    panel.color_mode(BigValueColorMode.VALUE).graph_mode(BigValueGraphMode.AREA)
    return panel.reduce_options(ReduceDataOptions().calcs(["lastNotNull"]))


def rows(title: str, meaning: str, query: str, legend: str, y_label: str, unit: str, **options: Any) -> heatmap.Panel:
    """A heat map of one row for each series and a colour for its value, 0 to 1."""
    panel = _common(heatmap.Panel(), title, meaning, 8).with_target(_target(query, legend)).max_data_points(120)
    colour = HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("RdYlGn").steps(64).min(0).max(1)
    panel.calculate(False).color(colour).y_axis(YAxisConfig().axis_label(y_label))
    if "empty" in options:
        panel.no_value(options["empty"])
    return panel.cell_values(heatmap.CellValues().unit(unit)).show_legend()


def spread(title: str, meaning: str, query: str, unit: str, **options: Any) -> heatmap.Panel:
    """A heat map of a histogram's buckets."""
    target = _target(query, "{{le}}").format(PromQueryFormat.HEATMAP)
    panel = _common(heatmap.Panel(), title, meaning, 8).with_target(target).max_data_points(120)
    colour = HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Oranges").steps(64)
    panel.calculate(False).color(colour).y_axis(YAxisConfig().unit(unit)).show_legend()
    if "empty" in options:
        panel.no_value(options["empty"])
    return panel


def states(
    title: str, meaning: str, query: str, legend: str, names: dict[str, tuple[str, str]], empty: str
) -> statetimeline.Panel:
    """A band for each series; `names` gives a value's text and colour."""
    panel = _common(statetimeline.Panel(), title, meaning, 8).with_target(_target(query, legend)).no_value(empty)
    results = {value: ValueMappingResult(text=text, color=colour) for value, (text, colour) in names.items()}
    return panel.mappings([ValueMap(options=results)]).fill_opacity(80).line_width(0)


def listing(title: str, meaning: str, queries: tuple[str, str]) -> table.Panel:
    """The labels of series as they are now, one row for what they share."""
    panel = _common(table.Panel(), title, meaning, 8)
    targets = [_target(query, "", letter) for letter, query in zip("AB", queries, strict=True)]
    panel.targets([target.instant().format(PromQueryFormat.TABLE) for target in targets])
    panel.with_transformation(DataTransformerConfig(id_val="merge", options={}))
    left_out = dict.fromkeys(["Time", "Value #A", "Value #B"], True)
    return panel.with_transformation(DataTransformerConfig(id_val="organize", options={"excludeByName": left_out}))


def _common(panel: Any, title: str, meaning: str, width: int) -> Any:
    return panel.title(title).description(meaning).datasource(SOURCE).span(width).height(HEIGHT)


def _target(query: str, legend: str, letter: str = "A") -> prometheus.Dataquery:
    return prometheus.Dataquery().expr(query).legend_format(legend).ref_id(letter)


def _targets(queries: Queries) -> list[Any]:
    return [_target(query, legend, letter) for letter, (legend, query) in zip("ABC", queries.items(), strict=False)]


def _thresholds(steps: Steps) -> ThresholdsConfig:
    return ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps([Threshold(value=v, color=c) for v, c in steps])
