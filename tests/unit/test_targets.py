import pytest

from vllm_edsd import targets
from vllm_edsd.errors import UserError
from vllm_edsd.targets import check_exists, make_target


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "named", ["gpt2", "org/name", "org/name:tag", "s3://bucket/a/b", "here", "./here", "here/", "file.gguf"]
)
def test_what_may_be_a_target_is_left_to_vllm(named, tmp_path):
    (tmp_path / "here").mkdir()
    (tmp_path / "file.gguf").touch()
    check_exists(named)


@pytest.mark.parametrize("named", ["./absent", "../absent", "~/absent", "/absent", "/no/such/target", "a/b/c", "absent/"])
def test_a_path_where_nothing_is_is_refused(named):
    with pytest.raises(UserError, match=f"^target {named} does not exist; give a directory or a hub id$"):
        check_exists(named)


@pytest.mark.parametrize("name", targets.TARGETS)
def test_one_that_we_make_is_told_how(name):
    with pytest.raises(UserError, match=rf"does not exist; make it with: vllm-edsd target {name} --out \.cache/{name}$"):
        check_exists(f".cache/{name}")


def test_a_target_is_made_where_nothing_of_the_users_is(tmp_path, monkeypatch):
    def write(out, report):
        out.mkdir()
        (out / "config.json").touch()

    monkeypatch.setitem(targets.TARGETS, "smollm2", write)
    for _ in range(2):
        assert make_target("smollm2", tmp_path / "target") == tmp_path / "target"
    (tmp_path / "photo").touch()
    with pytest.raises(UserError, match=r"holds files that are not ours \(there is no config\.json\)"):
        make_target("smollm2", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"target", "photo"}
