"""What people outside the project rely on: the names."""

import pkgutil

import pytest

import subnet

FIXED = (
    "open_checkpoint", "extract", "measure_overlap", "measure_forgetting", "relate", "analyze",
)  # fmt: skip


@pytest.mark.parametrize("name", subnet.__all__)
def test_every_public_name_is_there_and_documented(name):
    value = getattr(subnet, name)
    assert name == "__version__" or value.__doc__
    assert name in dir(subnet)


def test_the_fixed_names_are_public():
    assert set(FIXED) <= set(subnet.__all__)


def test_no_public_function_bears_a_rooms_name():
    rooms = {module.name for module in pkgutil.iter_modules(subnet.__path__)}
    assert {"overlap", "relation", "forgetting"} <= rooms
    assert not rooms & set(subnet.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'mesure_overlap'"):
        _ = subnet.mesure_overlap


def test_rooms_are_reached_without_importing_them_first():
    assert subnet.relation.relate is subnet.relate
