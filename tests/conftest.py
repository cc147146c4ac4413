"""How the tests are spread over processes (`pytest -n 2`, which is what `make test` runs).

A file stays in one process, for its fixtures and its compiled kernels. Files that run Lava share
one: they look at all processes and all shared memory that a run of Lava may leave behind.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

LAVA = {"test_loihi.py", "test_loihi_deploy.py", "test_loihi_faults.py", "test_thermometer.py"}
LONGEST = (
    *("test_loihi.py", "test_recurrent_import.py", "test_shared_models.py"),
    *("test_convert_ops.py", "test_onnx_node_corpus.py", "test_training.py"),
)
"""Begun first, in this order, so that no process ends long after the others."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        order = {name: place for place, name in enumerate(LONGEST)}
        items.sort(key=lambda item: order.get(item.path.name, len(order)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadFileScheduling

    class Files(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "Lava" if Path(file).name in LAVA else file

    config.option.loadscopereorder = False  # which would begin with the file of the most tests
    return Files(config, log)
