"""Classes by name: what installed packages add, and what of it is refused."""

import sys
from fractions import Fraction
from numbers import Number

import pytest

from vllm_edsd.errors import UserError
from vllm_edsd.extensions import Extensions

NUMBERS = Extensions("number", "test.numbers", Number, {"fraction": "fractions:Fraction"})


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Installs packages that name these entry points."""

    def make(**entries):
        for package in ("first", "second"):
            metadata = tmp_path / f"{package}-1.0.dist-info"
            metadata.mkdir()
            (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
            lines = [f"{name} = {value}" for name, value in entries.items()]
            (metadata / "entry_points.txt").write_text("\n".join(["[test.numbers]", *lines]))
        monkeypatch.syspath_prepend(tmp_path)

    return make


def test_ours_and_theirs_by_name(install):
    install(decimal="decimal:Decimal", absent="nothing_there:Thing")
    assert list(NUMBERS.known()) == ["absent", "decimal", "fraction"]
    assert NUMBERS.load("fraction") is Fraction
    assert NUMBERS.load("decimal") is sys.modules["decimal"].Decimal


def test_an_unknown_name_lists_the_known(install):
    install(decimal="decimal:Decimal")
    with pytest.raises(UserError, match="unknown number 'decimals'; known: decimal, fraction"):
        NUMBERS.load("decimals")


def test_a_name_that_is_taken(install):
    install(fraction="decimal:Decimal")
    with pytest.raises(UserError, match="the number 'fraction' is both fractions:Fraction and decimal:Decimal: uninstall"):
        NUMBERS.known()


@pytest.mark.parametrize("place", ["nothing_there:Thing", "decimal:Thing"])
def test_a_package_that_is_broken(place, install):
    install(broken=place)
    with pytest.raises(UserError, match=f"the number 'broken', {place}, cannot be loaded .*uninstall it"):
        NUMBERS.load("broken")


@pytest.mark.parametrize("place", ["fractions", "decimal:Context", "decimal:getcontext"])
def test_what_is_no_subclass(place, install):
    install(thing=place)
    with pytest.raises(UserError, match=f"the number 'thing', {place}, is no subclass of numbers.Number"):
        NUMBERS.load("thing")
