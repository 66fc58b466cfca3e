"""Which commit a result belongs to, and when it is marked as changed."""

import subprocess

import pytest

from fusionlab.checkout import git_commit


@pytest.fixture
def checkout(tmp_path):
    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True)

    git("init", "-q")
    for name in ("code.py", "data/one.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("1")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    return tmp_path


def test_a_clean_checkout_is_its_commit(checkout):
    commit = git_commit(checkout)
    assert commit is not None and len(commit) == 12 and int(commit, 16) >= 0


def test_changed_and_new_files_are_said(checkout):
    commit = git_commit(checkout)
    (checkout / "code.py").write_text("2")
    assert git_commit(checkout) == git_commit(checkout, ["data"]) == f"{commit}, with local changes"


@pytest.mark.parametrize("name", ["data/one.json", "data/new.json"])
def test_a_folder_can_be_left_out(checkout, name):
    commit = git_commit(checkout)
    (checkout / name).write_text("2")
    assert git_commit(checkout, ["data"]) == commit
    assert git_commit(checkout) == f"{commit}, with local changes"


def test_outside_a_checkout_there_is_none(tmp_path):
    assert git_commit(tmp_path) is None
