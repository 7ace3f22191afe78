"""Draws some panels of edsd.json as Prometheus's own graphs, with headless Chromium, into a picture:

python deploy/grafana/graphs.py http://localhost:9090 graphs.png [--range 15m] [--interval 1m] [--instance REGEX]
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlencode

PANELS = ("Acceptance length", "Acceptance by position", "Speed by batch size, with drafts and without")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SIZE = (1085, 800)  # pixels, for each graph
LOADING = 20_000  # milliseconds of the page's own time


def expressions(instance: str, interval: str) -> list[str]:
    """The first query of each panel, in vLLM's own spelling, for all models."""
    board = json.loads(Path(__file__).with_name("edsd.json").read_text())
    values = {"${edsd}": "edsd:", "$__rate_interval": interval, "$model_name": ".*", "$instance": instance}
    found = []
    for title in PANELS:
        query = next(panel for panel in board["panels"] if panel["title"] == title)["targets"][0]["expr"]
        for variable, value in values.items():
            query = query.replace(variable, value)
        found.append(query)
    return found


def page(prometheus: str, queries: list[str], span: str) -> str:
    """The address of Prometheus's page with a graph for each query, over the time `span` up to now."""
    fields = {}
    for number, query in enumerate(queries):
        fields |= {f"g{number}.expr": query, f"g{number}.tab": "0", f"g{number}.range_input": span}
    return f"{prometheus.rstrip('/')}/graph?{urlencode(fields)}"


def draw(address: str, picture: Path, height: int) -> None:
    """Writes `picture`, as wide as SIZE says and `height` pixels high. Ends the process where there is no browser."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        sys.exit(f"none of {', '.join(BROWSERS)} is installed; on Debian: apt-get install chromium")
    # As root, as in a container, Chromium starts only without its sandbox; the page is Prometheus's own.
    options = ["--headless", "--no-sandbox", "--hide-scrollbars", f"--window-size={SIZE[0]},{height}"]
    subprocess.run(
        [browser, *options, f"--virtual-time-budget={LOADING}", f"--screenshot={picture.absolute()}", address], check=True
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prometheus", help="its address, as http://localhost:9090")
    parser.add_argument("picture", type=Path, help="a PNG file to write")
    parser.add_argument("--range", default="15m", help="how far back the graphs go (15m)")
    parser.add_argument("--interval", default="1m", help="what rates are taken over: four scrapes or more (1m)")
    parser.add_argument("--instance", default=".*", help="only of servers that match this regular expression")
    given = parser.parse_args()
    queries = expressions(given.instance, given.interval)
    draw(page(given.prometheus, queries, given.range), given.picture, SIZE[1] * len(queries))
