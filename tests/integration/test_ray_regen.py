"""What `regen --ray` says when it cannot go on; that it makes the shards is in tests/e2e/test_train.py."""

from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from vllm_edsd.cli.main import app
from vllm_edsd.engine import ray_regen
from vllm_edsd.engine.ray_regen import over_ray
from vllm_edsd.errors import UserError


def test_a_part_that_fails_is_told_with_its_last_words(tmp_path):
    """In a real cluster, whose workers find no target."""
    wanted = rf"part [12]/2 on node .* exit code 2; finished shards stay in {tmp_path}.*\n(.*\n)*.*nowhere"
    with pytest.raises(UserError, match=wanted):
        over_ray(["nowhere", "--prompts=none", f"--out={tmp_path}"], 2, tmp_path, lambda _: pytest.fail("no shard was made"))


@pytest.mark.parametrize(
    ("nodes", "scarce"), [([{"CPU": 2.0}], "CPU"), ([{"CPU": 9.0, "GPU": 1.0}, {"CPU": 9.0, "GPU": 1.0}], "GPU")]
)
def test_more_workers_than_the_cluster_has_places_for_are_refused(nodes, scarce, tmp_path, monkeypatch):
    alive = [{"Alive": True, "Resources": resources} for resources in nodes]
    monkeypatch.setattr(ray_regen, "join", lambda workers: False)
    monkeypatch.setattr(ray_regen, "ray", SimpleNamespace(nodes=lambda: alive))
    with pytest.raises(UserError, match=f"--ray 3 needs a {scarce} for each worker"):
        over_ray(["nowhere"], 3, tmp_path, lambda _: None)


def test_parts_and_ray_exclude_each_other(tmp_path):
    done = CliRunner().invoke(app, ["regen", "t", "--prompts=p", f"--out={tmp_path}", "--ray=2", "--part=1/2"])
    assert isinstance(done.exception, UserError) and "--part 1/2 and --ray 2 exclude each other" in str(done.exception)
