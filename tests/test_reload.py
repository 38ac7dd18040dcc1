"""conserver.reload: a change of the config is in force for the next claim, a mistake is not."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from conserver.config import load_config
from conserver.reload import Reload

GOOD = """
links:
  tag: {module: links.tag, options: {tags: [%s]}}
chains:
  main: {links: [tag], ingress_lists: [in], egress_lists: [out], enabled: true}
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    """Write the config file, so that its time is always another."""
    times = iter(range(10**9, 2 * 10**9))

    def write(text: str) -> Path:
        path = tmp_path / "config.yml"
        path.write_text(text)
        os.utime(path, (0, next(times)))
        return path

    return write


@pytest.fixture
def reload(write: Callable[[str], Path]) -> Reload:
    path = write(GOOD % "a")
    config, _ = load_config(path)
    assert config is not None
    return Reload(path, config)


def test_a_file_that_did_not_change_is_not_read(reload: Reload, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is looked at all the time."""
    monkeypatch.setattr("conserver.components.check", lambda path: pytest.fail("read"))

    assert reload.look() is None


def test_a_change_comes_into_force_once(
    reload: Reload, write: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    """It is told in the log, and the next look finds nothing new."""
    write(GOOD % "b")

    with caplog.at_level(logging.INFO, "conserver.reload"):
        config = reload.look()

    assert config is not None
    assert config.links["tag"].options == {"tags": ["b"]}
    assert reload.look() is None
    assert "was changed; it is in force for what is claimed from now on" in caplog.text


def test_a_change_that_means_the_same_changes_nothing(reload: Reload, write: Callable[[str], Path]) -> None:
    """A comment is no reason to import everything anew."""
    write("# a comment\n" + GOOD % "a")

    assert reload.look() is None
    assert reload.error is None


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ("links: [", "syntax"),
        (GOOD.replace("[tag]", "[tagg]") % "a", "did you mean 'tag'?"),
        (GOOD.replace("links.tag,", "links.nowhere,") % "a", "links.nowhere"),
    ],
)
def test_a_broken_file_leaves_the_last_good_config_in_force(
    reload: Reload, write: Callable[[str], Path], caplog: pytest.LogCaptureFixture, broken: str, words: str
) -> None:
    """It is told what is wrong, once; and when it is mended as it was before, nothing has happened."""
    write(broken)

    first, error = reload.look(), reload.error
    told = caplog.text
    again = reload.look()
    assert caplog.text == told

    write(GOOD % "a")
    mended = reload.look()

    assert (first, again, mended) == (None, None, None)
    assert error is not None
    assert words in told
    assert "was changed and cannot be used; the config before stays in force" in told
    assert reload.error is None


def test_a_good_file_after_a_broken_one_comes_into_force(reload: Reload, write: Callable[[str], Path]) -> None:
    """The mistake is forgotten."""
    write("links: [")
    reload.look()
    write(GOOD % "b")

    config = reload.look()

    assert config is not None
    assert reload.error is None


def test_a_module_that_comes_later_brings_its_config_into_force(
    reload: Reload, write: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The file is checked again now and then although it did not change, and what is wrong is told once."""
    monkeypatch.setattr("conserver.reload.CHECK_AGAIN_SECS", 0.0)
    path = write(GOOD.replace("links.tag, options: {tags: [%s]}", "links.late_one"))

    early, again = reload.look(), reload.look()
    (path.parent / "links").mkdir()
    (path.parent / "links" / "late_one.py").write_text("def run(vcon_uuid, link_name, opts):\n    return vcon_uuid\n")
    config = reload.look()

    assert (early, again) == (None, None)
    assert config is not None
    assert config.links["tag"].module == "links.late_one"
    assert caplog.text.count("the config before stays in force") == 1


def test_a_file_that_is_gone_changes_nothing(reload: Reload, write: Callable[[str], Path]) -> None:
    """It may be about to be put in its place."""
    path = write(GOOD % "a")
    path.unlink()

    gone, error = reload.look(), reload.error
    write(GOOD % "b")
    config = reload.look()

    assert gone is None
    assert error is not None
    assert config is not None


def test_a_file_that_is_swapped_underneath_is_noticed(
    reload: Reload, write: Callable[[str], Path], tmp_path: Path
) -> None:
    """Mounted configs are links to folders that are replaced: same name, same size, even the same time."""
    path = tmp_path / "config.yml"
    before = path.stat()
    other = tmp_path / "other.yml"
    other.write_text(GOOD % "b")
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.rename(path)

    config = reload.look()

    assert config is not None
    assert config.links["tag"].options == {"tags": ["b"]}


def test_a_file_that_is_being_written_is_left_until_it_is_done(
    reload: Reload, write: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of a file may be a valid one."""
    from conserver import components

    check = components.check

    def written_meanwhile(path: Path) -> object:
        found = check(path)
        write(GOOD % "whole")
        return found

    write(GOOD % "half")
    with monkeypatch.context() as patch:
        patch.setattr(components, "check", written_meanwhile)
        during = reload.look()
    config = reload.look()

    assert during is None
    assert config is not None
    assert config.links["tag"].options == {"tags": ["whole"]}


@pytest.mark.parametrize("text", ["", "chains: {}\n"])
def test_a_file_without_chains_does_not_stop_all_work(
    reload: Reload, write: Callable[[str], Path], caplog: pytest.LogCaptureFixture, text: str
) -> None:
    """Editors empty a file before they write it."""
    write(text)

    assert reload.look() is None
    assert reload.error is not None
    assert "the config before stays in force" in caplog.text
