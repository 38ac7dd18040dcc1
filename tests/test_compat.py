"""conserver.compat: who can import the names of the existing conserver, and who finds what is installed under them."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from conserver.compat import old_names
from conserver.components import check, load_link, load_storage, use_folder
from conserver.config import LinkConfig, StorageConfig
from conserver.errors import ConfigError
from conserver.testing import run_link, try_link

Write = Callable[[str, str], None]
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def write(tmp_path: Path) -> Iterator[Write]:
    """Write a module beside the config; afterwards nothing of it is left in this process."""
    modules, path = set(sys.modules), list(sys.path)
    roots, folders = old_names._finder.roots, old_names._finder.folders

    def write(name: str, text: str) -> None:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(text))
        use_folder(tmp_path)

    yield write
    sys.path[:] = path
    old_names._finder.roots, old_names._finder.folders = roots, folders
    for name in set(sys.modules) - modules:
        module = sys.modules[name]
        places = [getattr(module, "__file__", None), *getattr(module, "__path__", ())]
        if any(str(place).startswith(str(tmp_path)) for place in places):
            del sys.modules[name]
    importlib.invalidate_caches()


def run(module: str) -> Any:
    """Load a link as a config names it, and run it."""
    return load_link(LinkConfig(name="mine", module=module, options={})).run("u", "mine", {})


def in_a_process(code: str, *path: Path) -> subprocess.CompletedProcess[str]:
    """Run code in a new interpreter, with *path* before ours."""
    entries = [*map(str, path), *(entry for entry in sys.path if entry)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(entries)}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


RUN = "def run(vcon_uuid, link_name, opts):\n    "


@pytest.mark.parametrize(
    ("lines", "value", "expected"),
    [
        ("from lib.vcon_redis import VconRedis", "VconRedis.__module__", "conserver.compat.lib.vcon_redis"),
        ("from server.lib.vcon_redis import VconRedis", "VconRedis.__module__", "conserver.compat.lib.vcon_redis"),
        (
            "from lib import metrics, queue as q",
            "[metrics.__name__[-11:], q.__name__[-9:]]",
            ["lib.metrics", "lib.queue"],
        ),
        ("import lib.metrics", "lib.metrics.__name__", "conserver.compat.lib.metrics"),
        ("import server.lib.metrics", "server.lib.metrics.__name__", "conserver.compat.lib.metrics"),
        ("import server.lib.metrics as m", "m.__name__", "conserver.compat.lib.metrics"),
        (
            "import lib.metrics, os, lib.queue",
            "[lib.metrics.__name__[-3:], lib.queue.__name__[-3:], os.sep]",
            ["ics", "eue", "/"],
        ),
        ("from server import redis_mgr", "redis_mgr.__name__", "conserver.compat.redis_mgr"),
        ("import redis_mgr", "redis_mgr.__name__", "conserver.compat.redis_mgr"),
        ("import vcon", "vcon.Vcon.__module__", "conserver.compat.vcon"),
        ("from vcon import Vcon", "Vcon.__module__", "conserver.compat.vcon"),
        ("from storage.base import Storage", "Storage.__module__", "conserver.compat.storage.base"),
        ("from storage.file import save", "save.__module__", "storages.file"),
        ("import storage.file", "storage.file.__name__", "storages.file"),
        ("from server.links.tag import run as tag", "tag.__module__", "links.tag"),
        ("from lib.links.filters import is_included", "is_included.__module__", "conserver.compat.lib.links.filters"),
    ],
)
@pytest.mark.parametrize("where", ["at the top", "when it runs"])
def test_each_spelling_of_an_import_means_ours(write: Write, lines: str, value: str, expected: Any, where: str) -> None:
    """At the top of a module and inside its functions, which import when they run."""
    body = f"{lines}\n{RUN}return {value}\n" if where == "at the top" else f"{RUN}{lines}\n    return {value}\n"
    write("links/old_link.py", f'"""A link."""\nfrom __future__ import annotations\n{body}')

    assert run("links.old_link") == expected


def test_all_of_a_module_can_be_imported(write: Write) -> None:
    """`import *` has the settings, too, which are read when they are asked for."""
    write("links/old_link.py", f"from settings import *\n{RUN}return VCON_SORTED_SET_NAME, VCON_CONTEXT_EXPIRY\n")

    assert run("links.old_link") == ("vcons", 86400)


def test_helpers_beside_the_link_may_too(write: Write) -> None:
    """Other modules of its package, and those in the config's folder."""
    write("links/old_helper.py", "from lib.logging_utils import init_logger\n")
    write("old_parts/part.py", "from server.lib import metrics\n")
    write("old_beside.py", "from old_parts.part import metrics\n")
    write(
        "links/old_link.py",
        f"from links.old_helper import init_logger\nimport old_beside\n{RUN}return old_beside.metrics.__name__\n",
    )

    assert run("links.old_link") == "conserver.compat.lib.metrics"


def test_a_failed_import_can_be_tried_under_the_other_name(write: Write) -> None:
    """As links do that are to run in several versions."""
    write(
        "links/old_link.py",
        f"""
try:
    from lib.nothing import x
except ImportError:
    from server.lib import metrics as x
{RUN}return x.__name__
""",
    )

    assert run("links.old_link") == "conserver.compat.lib.metrics"


def test_own_modules_of_the_config_folder_come_first(write: Write) -> None:
    """`settings.py` beside config.yml is the user's; so are the parts of `lib` that only they have."""
    write("settings.py", "COLOUR = 'green'\n")
    write("lib/old_mine.py", "SIZE = 7\n")
    write(
        "links/old_link.py",
        f"""
from settings import COLOUR
from lib.old_mine import SIZE
from lib import metrics, old_mine
{RUN}return COLOUR, SIZE, old_mine.SIZE, metrics.__name__
""",
    )

    assert run("links.old_link") == ("green", 7, 7, "conserver.compat.lib.metrics")


def test_a_package_is_not_given_the_settings_of_the_config_folder(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was written for the existing conserver's, and knows nothing of the user's."""
    (tmp_path / "site" / "old_package").mkdir(parents=True)
    (tmp_path / "site" / "old_package" / "__init__.py").write_text(
        f"from settings import VCON_CONTEXT_EXPIRY\n{RUN}return VCON_CONTEXT_EXPIRY\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "site")
    (tmp_path / "user").mkdir()
    (tmp_path / "user" / "settings.py").write_text("COLOUR = 'green'\n")
    use_folder(tmp_path / "user")

    assert run("old_package") == 86400


def test_a_link_that_wants_another_vcon_gets_it(write: Write) -> None:
    """What the old module never had comes from the package that has it."""
    write("vcon/__init__.py", "class Vcon: pass\nclass Party: pass\n")
    write("vcon/party.py", "NAME = 'party'\n")
    write(
        "links/old_link.py",
        f"from vcon import Vcon, Party\nfrom vcon.party import NAME\n{RUN}return Vcon.__module__, NAME\n",
    )
    write("links/older_link.py", f"from vcon import Vcon\n{RUN}return Vcon.__module__\n")

    assert run("links.old_link") == ("vcon", "party")
    assert run("links.older_link") == "conserver.compat.vcon"


def test_nobody_else_is_given_our_names(tmp_path: Path) -> None:
    """A package `lib` or `vcon` that is installed stays what it is, and one that is not, missing."""
    for name in ("lib", "vcon"):
        (tmp_path / "site" / name).mkdir(parents=True)
        (tmp_path / "site" / name / "__init__.py").write_text(f"WHOSE = 'their {name}'\n")
    (tmp_path / "site" / "other.py").write_text(
        "import lib\ndef later():\n    import vcon\n    return lib.WHOSE, vcon.WHOSE\n"
    )
    (tmp_path / "user").mkdir()
    (tmp_path / "user" / "old.py").write_text(
        "from lib.metrics import init_metrics\nfrom vcon import Vcon\nimport settings, other\n"
        f"{RUN}return init_metrics.__module__, Vcon.__module__, other.later()\n"
    )
    code = f"""
    import sys
    from pathlib import Path
    from conserver.components import load_link, use_folder
    from conserver.config import LinkConfig
    use_folder(Path({str(tmp_path / "user")!r}))
    print(load_link(LinkConfig(name="x", module="old")).run("u", "x", None))
    print(sys.modules["lib"].WHOSE, "settings" in sys.modules, "redis_mgr" in sys.modules)
    try:
        import settings
    except ImportError as error:
        print(error)
    """

    done = in_a_process(code, tmp_path / "site")

    assert done.stdout.splitlines() == [
        "('conserver.compat.lib.metrics', 'conserver.compat.vcon', ('their lib', 'their vcon'))",
        "their lib False False",
        "No module named 'settings'",
    ], done.stderr


def test_many_threads_may_import_at_once(write: Write) -> None:
    """Each of them gets ours, and the others theirs."""
    for number in range(20):
        write(
            f"old_link_{number}.py",
            f"from lib.queue import VconQueue\n{RUN}import redis_mgr\n    return redis_mgr.__name__\n",
        )

    with ThreadPoolExecutor(20) as threads:
        names = list(threads.map(lambda number: run(f"old_link_{number}"), range(20)))

    assert set(names) == {"conserver.compat.redis_mgr"}


def test_an_error_in_such_a_link_names_its_own_line(write: Write) -> None:
    """What is done to the imports moves nothing."""
    write("links/old_link.py", "import lib.metrics, lib.queue\n\nraise ValueError('no luck')\n")
    write("links/old_syntax.py", "import lib.metrics\nx = = 1\n")

    with pytest.raises(ConfigError, match=r"ValueError: no luck \(links/old_link.py:3\)"):
        run("links.old_link")
    with pytest.raises(ConfigError, match=r"SyntaxError: .*\(links/old_syntax.py:2\)"):
        run("links.old_syntax")


def test_what_is_written_to_the_cache_is_of_no_such_module(write: Write, tmp_path: Path) -> None:
    """Others who import the same file, or the existing conserver itself, must not find it there."""
    write("links/old_link.py", f"import lib.metrics\n{RUN}return 1\n")
    write("links/new_link.py", f"{RUN}return 1\n")
    (run("links.old_link"), run("links.new_link"))

    assert [path.name for path in (tmp_path / "links").rglob("old_link*.pyc")] == []


def test_the_check_finds_nothing_wrong_with_such_a_config(tmp_path: Path) -> None:
    """`conserver check` imports them in its child process, before there is a server."""
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "old.py").write_text(
        "from server.lib.vcon_redis import VconRedis\nfrom redis_mgr import redis\nvcon_redis = VconRedis()\n"
        f"{RUN}return vcon_uuid\n"
    )
    (tmp_path / "archive.py").write_text(
        "from lib.vcon_redis import VconRedis\ndefault_options = {}\ndef save(vcon_uuid, opts):\n    pass\n"
    )
    (tmp_path / "config.yml").write_text(
        "links: {old: {module: links.old}}\nstorages: {a: {module: archive}}\n"
        "chains: {main: {links: [old], storages: [a], ingress_lists: [in]}}\n"
    )

    config, findings = check(tmp_path / "config.yml", {"VCON_REDIS_EXPIRY": "0"})

    assert [str(finding) for finding in findings] == []
    assert config is not None


def test_storages_may_too(write: Write) -> None:
    """A storage of one's own that was written for the existing conserver."""
    write(
        "storage/old_own.py",
        "from lib.metrics import init_metrics\ndef save(vcon_uuid, opts):\n    return init_metrics\n",
    )

    saved = load_storage(StorageConfig(name="own", module="storage.old_own")).save("u", {})

    assert saved.__module__ == "conserver.compat.lib.metrics"


def test_such_a_link_can_be_tried_by_its_author(write: Write) -> None:
    """`run_link` runs the sample link on a server of its own, with no REDIS_URL, and the queue and client of that."""
    sample = (ROOT / "tests" / "compat_package" / "acme_links" / "sample.py").read_text()
    write("links/old_link.py", sample)
    write(
        "links/old_next.py",
        f"from redis_mgr import redis\n{RUN}return vcon_uuid if redis.exists(f'vcon:{{vcon_uuid}}') else None\n",
    )

    vcon = run_link("links.old_link", {"custom_data": {"a": 1}})
    assert vcon.attachments == [{"purpose": "custom_data", "body": {"a": 1}, "encoding": "json"}]
    assert try_link("links.old_next", on=vcon).result == vcon.uuid


def test_in_a_test_all_may_import_them_after_install() -> None:
    """As the sample link's own test: it is imported by the test, and has names of `server.lib` mocked."""
    code = f"""
    import sys
    sys.path.insert(0, {str(ROOT / "tests" / "compat_package")!r})
    from conserver import compat
    compat.install()
    from unittest import mock
    import lib.metrics, server.lib.metrics, conserver.compat.lib.metrics as ours
    assert lib.metrics is server.lib.metrics is ours
    assert ours.__spec__.name == "conserver.compat.lib.metrics"
    with mock.patch("server.lib.metrics.init_metrics") as mocked:
        from acme_links import sample
        assert sample.init_metrics is mocked
    from vcon import Vcon
    vcon = Vcon.build_new()
    with mock.patch("acme_links.sample.VconRedis") as store:
        store.return_value.get_vcon.return_value = vcon
        assert sample.run(vcon.uuid, "sample", {{"custom_data": {{"a": 1}}}}) == vcon.uuid
    store.return_value.store_vcon.assert_called_once_with(vcon)
    [attachment] = vcon.attachments
    assert attachment["body"] == {{"a": 1}}, attachment
    """

    done = in_a_process(code)

    assert (done.returncode, done.stderr) == (0, "")
