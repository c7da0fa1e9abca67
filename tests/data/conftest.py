"""Caches of these tests live in a folder of their own."""

import pytest


@pytest.fixture(autouse=True, scope="session")
def data_folder(tmp_path_factory):
  with pytest.MonkeyPatch.context() as patch:
    folder = tmp_path_factory.mktemp("data")
    patch.setenv("JAXLM_DATA", str(folder))
    yield folder
