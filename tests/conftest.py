import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def small_folder(tmp_path_factory):
    # Imported here: tests of light modules do not wait for it.
    from small import small_study

    folder = tmp_path_factory.mktemp("small")
    small_study(folder)
    return folder


@pytest.fixture
def small(small_folder, monkeypatch):
    from small import NAME

    from nas_kd.study.study import open_study

    monkeypatch.chdir(small_folder)
    return open_study(NAME)
