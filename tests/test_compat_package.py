"""A package of links for the existing conserver, unchanged, from a wheel, in a real chain: tests/compat_package."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from tests.fakes.http_server import HttpServer
from tests.host import Host, accounted, entries, store, vcon
from tests.waiting import wait_until

PACKAGE = Path(__file__).resolve().parent / "compat_package"

#: What links may use, by the object that has it; those of VconRedis and Vcon by the class.
MEMBERS = {
    "VconRedis": (
        *("DEFAULT_TTL", "get_vcon", "get_vcon_dict", "store_vcon", "store_vcon_dict", "set_expiry", "get_ttl"),
        *("remove_expiry", "store_vcon_async", "store_vcon_dict_async", "set_expiry_async", "get_ttl_async"),
        *("_stringify_json_body", "_load_from_storage", "_enforce_spec_on_write"),
    ),
    "lib.logging_utils": ("init_logger",),
    "lib.metrics": (
        *("increment_counter", "record_histogram", "add_updown_counter", "register_observable_gauge"),
        *("init_metrics", "stats_gauge", "stats_count"),
    ),
    "lib.queue": (
        *("VconQueue", "enqueue", "enqueue_front", "dequeue", "enqueue_dlq", "queue_length", "set_vcon_ttl"),
        *("enqueue_async", "queue_length_async", "dequeue_dlq_async", "enqueue_storage_dlq"),
    ),
    "lib.queue_metrics": ("register_ingress_list_length_gauge", "register_redis_memory_gauge"),
    "lib.links.filters": ("is_included", "randomly_execute_with_sampling", "FilterOptions", "OnlyIfFilter"),
    "lib.openai_client": (
        *("get_openai_client", "get_async_openai_client", "get_vendor_from_opts"),
        "DEFAULT_AZURE_OPENAI_API_VERSION",
    ),
    "lib.ai_usage": ("send_ai_usage_data_for_tracking",),
    "lib.context_utils": (
        *("get_context_key", "store_context_sync", "store_context_async", "retrieve_context"),
        "extract_otel_trace_context",
    ),
    "lib.error_tracking": ("init_error_tracker", "init_sentry", "capture_exception"),
    "lib.tracing": ("init_tracing",),
    "lib.vcon_compat": ("normalize_legacy_fields",),
    "lib.vcon_egress_compat": ("to_legacy", "to_configured_legacy", "SUPPORTED_VERSIONS"),
    "lib.phone_number_utils": ("get_e164_number",),
    "lib.process_utils": ("start_process", "start_async_process", "async_runner"),
    "lib.listen_list": ("listen_list",),
    "lib.redaction": ("safe_opts", "is_sensitive_name"),
    "lib.dialog_body": ("decode_inline_dialog_body",),
    "redis_mgr": ("redis", "get_client", "set_key", "get_key", "delete_key", "show_keys", "get_async_client"),
    "config": (
        *("get_config", "get_worker_count", "is_parallel_storage_enabled", "get_vcon_concurrency"),
        *("get_start_method", "Configuration", "get_storages", "get_followers", "get_imports", "get_ingress_auth"),
    ),
    "dlq_utils": ("get_ingress_list_dlq_name", "get_storage_dlq_name"),
    "storage.base": ("Storage", "save", "get", "delete", "log_metrics"),
    "version": ("get_version", "get_git_commit", "get_build_time", "get_version_info", "get_version_string"),
    "vcon": (
        *("vcon_dict", "build_from_json", "build_new", "uuid", "vcon", "subject", "created_at", "updated_at"),
        *("redacted", "appended", "group", "hash", "tags", "parties", "dialog", "attachments", "analysis"),
        *("get_tag", "add_tag", "find_attachment_by_purpose", "find_attachment_by_type", "add_attachment"),
        *("find_analysis_by_type", "add_analysis", "add_party", "find_party_index", "add_dialog", "find_dialog"),
        *("decoded_body", "with_decoded_body", "to_json", "dumps", "to_dict", "uuid8_domain_name", "uuid8_time"),
    ),
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the wheel is installed. It is pure Python, so to install it is to unpack it."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(PACKAGE, folder / "source", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=folder / "source", check=True, capture_output=True)
    [wheel] = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


@pytest.fixture
def usage() -> Iterator[HttpServer]:
    """The service that is told what calls cost."""
    with HttpServer(lambda exchange: exchange.answer(200)) as server:
        yield server


@pytest.fixture
def host(tmp_path: Path, server_url: str, site: Path, usage: HttpServer) -> Iterator[Host]:
    """A conserver whose chain consists of what the wheel brings."""
    options = {"usage_url": f"{usage.url}/usage"}
    config = {
        "links": {
            "lib": {"module": "acme_lib", "options": options},
            "server": {"module": "acme_server", "options": options},
            "sample": {"module": "acme_links.sample"},
        },
        "storages": {"archive": {"module": "acme_archive", "options": {"name": "acme"}}},
        "chains": {
            "acme": {
                "links": ["lib", "server", "sample"],
                "storages": ["archive"],
                "ingress_lists": ["in"],
                "egress_lists": ["out"],
            }
        },
    }
    path = os.pathsep.join([str(site), str(PACKAGE.parent.parent)])
    environment = {"PYTHONPATH": path, "CONSERVER_WORKERS": 1, "CONSERVER_VCON_CONCURRENCY": 2}
    for name in ("VCON_REDIS_EXPIRY", "EGRESS_FORMAT_VERSION", "CONSERVER_START_METHOD"):
        environment[name] = ""
    host = Host(tmp_path / "host", server_url, config, **environment).start()
    yield host
    host.close()


def test_the_package_runs_from_a_wheel_unchanged(redis: Redis, host: Host, usage: HttpServer) -> None:
    """Under both names, in one chain, every member once, with two vCons at a time.

    Its numbers and lines are among ours, without a series a vCon.
    """
    uuids = store(redis, [vcon(str(n)) for n in range(4)])
    redis.rpush("in", *uuids)
    wait_until(lambda: accounted(redis, ["in"]), 60, "the chain")

    assert entries(redis, "DLQ:in") == [], host.said()[-3000:]
    assert sorted(entries(redis, "out")) == sorted(uuids)
    for uuid in uuids:
        document = json.loads(redis.get(f"vcon:{uuid}") or b"")
        attachments = {entry["purpose"]: entry["body"] for entry in document["attachments"]}
        by = [entry["body"] for entry in document["attachments"] if entry["purpose"] == "acme"]
        assert document["subject"] == "seen by acme"
        assert by == [{"by": "lib"}, {"by": "server"}]
        assert (attachments["tags"], attachments["custom_data"]) == (["acme:lib", "acme:server"], {})
    for name in ("acme:next", "acme:front", "acme:async", "DLQ:acme", "DLQ:storage:acme"):
        assert sorted(entries(redis, name)) == sorted(uuids * 2), name
    reports = [json.loads(request.body) for request in usage.requests]
    assert len(reports) == 8
    assert {(report["sub_type"], report["input_units"], report["ai_model"]) for report in reports} == {("ACME", 3, "m")}
    # Twice by a link through `storage.base`, and once when the chain saves.
    assert entries(redis, "acme:archived").count(f"acme {uuids[0]}") == 3
    assert redis.ttl(f"vcon:{uuids[0]}") > 2000
    text = wait_until(lambda: counted(host), 30, "the numbers")
    for line in (
        'acme_runs_total{link_name="lib"} 4.0',
        "acme_seen_total 16.0",
        "acme_open_up_total 8.0",
        "acme_open_down_total 8.0",
        'acme_secs_count{link_name="acme"} 8.0',
    ):
        assert line in text.splitlines()
    assert [uuid for uuid in uuids if uuid in text] == []
    assert '"acme_extra":"seen"' in host.said()
    assert "ValueError: captured" in host.said()


def counted(host: Host) -> str:
    """What the supervisor has been told, once it is all."""
    text = host.get("/metrics").text
    return text if 'acme_runs_total{link_name="server"} 4.0' in text else ""


def test_the_package_uses_every_member() -> None:
    """So what it proves is all that links may rely on."""
    used: set[str] = set()
    for path in (PACKAGE / "acme_links").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                used.add(node.attr)
            elif isinstance(node, ast.alias):
                used |= {node.name.rpartition(".")[2]}
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                used.add(node.value)

    assert {member for members in MEMBERS.values() for member in members} - used == set()


def test_the_page_has_every_member() -> None:
    """And each module that has them."""
    text = (PACKAGE.parent.parent / "docs" / "reference" / "compat.md").read_text()
    modules = [name for name in MEMBERS if name != "VconRedis"]

    assert [name for name in modules if f"| `{name}` |" not in text] == []
    words = set(re.findall(r"\w+", text))
    assert [member for members in MEMBERS.values() for member in members if member not in words] == []


def test_both_links_import_the_same_under_their_names() -> None:
    """One has `lib.*` alone, the other `server.*` alone."""
    for name, prefix in (("lib_names", False), ("server_names", True)):
        tree = ast.parse((PACKAGE / "acme_links" / f"{name}.py").read_text())
        modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)} - {"acme_links"}

        assert {module.startswith("server") for module in modules if module} == {prefix}
        assert "conserver" not in modules
