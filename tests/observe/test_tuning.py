from pathlib import Path

from torch._inductor.runtime.cache_dir_utils import cache_dir

from fusionlib.observe.tuning import own_tuning


def test_the_caches_are_empty_within_and_back_afterwards():
    before = cache_dir()
    with own_tuning():
        assert cache_dir() != before and not list(Path(cache_dir()).iterdir())
    assert cache_dir() == before
