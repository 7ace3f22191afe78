"""The queries of our panels, in PromQL with Grafana's variables.

Metric names begin with `${edsd}` and `${vllm}`, since not all who export them spell them alike: `vllm:`, the `vllm_` of
collectors that allow no colon, and Ray's `ray_vllm_`.
"""

WINDOW = "[$__rate_interval]"


def edsd(name: str, **labels: str) -> str:
    """One of our series, of the models and instances chosen."""
    return _series("edsd", name, labels)


def vllm(name: str, **labels: str) -> str:
    """One of vLLM's."""
    return _series("vllm", name, labels)


def _series(prefix: str, name: str, labels: dict[str, str]) -> str:
    chosen = {"model_name": '=~"$model_name"', "instance": '=~"$instance"'} | {k: f'="{v}"' for k, v in labels.items()}
    return f"${{{prefix}}}{name}{{{', '.join(key + match for key, match in chosen.items())}}}"


def rate(series: str, *by: str) -> str:
    """Events per second of each model."""
    return f"sum by ({', '.join(('model_name', *by))}) (rate({series}{WINDOW}))"


def share(part: str, whole: str) -> str:
    """A ratio that has no value where there was no traffic."""
    return f"{part} / ({whole} > 0)"


def mean(histogram: str) -> str:
    """What one of our histograms saw on average."""
    return share(rate(edsd(f"{histogram}_sum")), rate(edsd(f"{histogram}_count")))


def quantile(q: float, bucket: str) -> str:
    """The value that a share `q` of a histogram stays below."""
    return f"histogram_quantile({q}, {rate(bucket, 'le')})"


def percentiles(histogram: str) -> dict[str, str]:
    """What half of one of vLLM's histograms and all but a hundredth stay below, by legend."""
    return {f"p{round(100 * q)}": quantile(q, vllm(f"{histogram}_bucket")) for q in (0.5, 0.99)}


PLAIN, DRAFT = (edsd("guard_tokens_per_second", way=way) for way in ("plain", "draft"))
# How often a size's figures moved between two scrapes says how much it is in use.
USE = f"sum without (way) (changes({edsd('guard_tokens_per_second')}{WINDOW}))"
RATIO = f"({DRAFT} / ignoring (way) {PLAIN})"
GAIN = f"({edsd('guard_drafts')} * {RATIO} + (1 - {edsd('guard_drafts')}))"
SPEEDUP = share(f"sum by (model_name) ({GAIN} * {USE})", f"sum by (model_name) ({USE} and {RATIO})")
PLAIN_STEPS = share(rate(edsd("steps_total", drafted="false")), rate(edsd("steps_total")))
CUT = share(rate(edsd("cut_tokens_total")), rate(edsd("drafted_tokens_total")))
BESIDE = share(rate(edsd("beside_accepted_tokens_total")), rate(edsd("accepted_tokens_total")))
ACCEPTED = share(rate(edsd("accepted_tokens_total")), rate(edsd("verified_tokens_total")))
ESTIMATED, OBSERVED = (
    share(rate(edsd(f"{kind}_acceptances_total")), rate(edsd("judged_tokens_total"))) for kind in ("estimated", "observed")
)


def experts(kind: str, per: str, routing: str) -> str:
    """Experts of a kind ("activated", "distinct") for each token or step, over all layers; routing "served" or "model"."""
    return share(rate(edsd(f"{kind}_experts_total", routing=routing)), rate(edsd(f"moe_{per}_total")))


def experts_kept(kind: str) -> str:
    """By layer, the share that was served of what the whole target would use."""
    served, whole = (edsd(f"{kind}_experts_total", routing=routing) for routing in ("served", "model"))
    return share(f"sum by (layer) (rate({served}{WINDOW}))", f"sum by (layer) (rate({whole}{WINDOW}))")
