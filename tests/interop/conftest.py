"""What the tests share: where checkpoints lie, and one daemon for all of them."""

import os
import pathlib

import pytest

from daemon import Daemon


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="every combination in every format, and all texts")


@pytest.fixture(scope="session")
def shared():
    """The folder of trained checkpoints and token sets; tests that need it are skipped without it."""
    folder = pathlib.Path(os.environ["QUANTD_SHARED"], "models").resolve()
    if not (folder / "evaluation.ndjson").is_file():
        pytest.skip(f"no trained checkpoints and token sets in {folder}")
    return folder


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """A model root that tests may fill."""
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="session")
def quantd(checkpoints):
    roots = [checkpoints]
    trained = pathlib.Path(os.environ["QUANTD_SHARED"], "models").resolve()
    if trained.is_dir():
        roots.append(trained)
    with Daemon(roots) as daemon:
        yield daemon


def pytest_configure(config):
    config.addinivalue_line("markers", "full: only with --full")
    config.addinivalue_line("markers", "halved(a, b): without --full every other combination of these two parameters, so that each value of "
                                       "either is met")
    os.environ["QUANTD_INTEROP_FULL"] = "1" if config.getoption("--full") else ""  # for modules that scale themselves


def is_left_out(item, seen):
    """Whether a test is in the half of its combinations that --full adds. seen: {(function, parameter): {value: its place}}, kept here."""
    halved = item.get_closest_marker("halved")
    places = []
    for name in halved.args if halved else ():
        values = seen.setdefault((item.function, name), {})
        places.append(values.setdefault(repr(item.callspec.params[name]), len(values)))
    return sum(places) % 2 == 1


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--full"):
        seen = {}
        extra = [item for item in items if item.get_closest_marker("full") or is_left_out(item, seen)]
        config.hook.pytest_deselected(items=extra)
        items[:] = [item for item in items if item not in extra]
