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


@pytest.fixture(scope="module")
def timed_briefly():
    """One run a round and no warm-up, where times are not what is tested."""
    from nas_kd.evaluation import coding_cost
    from nas_kd.measurement import latency

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "WARMUP_S", 0)
        patch.setattr(coding_cost, "MOST_RUNS", 1)
        yield
