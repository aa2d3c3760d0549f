"""The tests of the charts are skipped without helm."""

from __future__ import annotations

import pytest

from scripts.find_helm import NoHelmError, find_helm
from tests.charts.rendered import VALUE_SETS, Release, render


@pytest.fixture(autouse=True, scope="session")
def _helm() -> None:
    try:
        find_helm()
    except NoHelmError as error:
        pytest.skip(f"THE CHART IS NOT TESTED: {error}")


@pytest.fixture(params=VALUE_SETS)
def release(request: pytest.FixtureRequest) -> Release:
    """The chart rendered with each value set of ci/."""
    return render(request.param)
