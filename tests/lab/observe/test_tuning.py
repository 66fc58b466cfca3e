import os
from pathlib import Path

from torch._inductor.runtime.cache_dir_utils import cache_dir

from fusionlab.observe.tuning import own_tuning


def test_the_caches_are_empty_within_and_back_afterwards():
    before = cache_dir()
    with own_tuning():
        assert cache_dir() != before and not list(Path(cache_dir()).iterdir())
    assert cache_dir() == before


def test_binaries_can_be_kept_while_the_choice_is_made_again(monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    before = cache_dir()
    with own_tuning(keep_binaries=True):
        assert cache_dir() != before and os.environ["TRITON_CACHE_DIR"] == str(tmp_path)
    assert os.environ["TRITON_CACHE_DIR"] == str(tmp_path)
    with own_tuning():
        assert os.environ["TRITON_CACHE_DIR"] != str(tmp_path)
