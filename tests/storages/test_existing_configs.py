"""Storages as they stand in the configs of the existing conserver."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from conserver.components import check

LOGIN = {"aws_access_key_id": "AKIA", "aws_secret_access_key": "x"}
SFTP = {"name": "sftp", "url": "localhost", "port": 22, "username": "me", "password": "x", "path": "."}
MONGO = {"name": "mongo", "database": "conserver", "collection": "vcons", "url": "mongodb://localhost:27017/"}
DATAVERSE = {"url": "https://org.crm.dynamics.com", "tenant_id": "t", "client_id": "c", "client_secret": "s"}
ENTITY = {
    "name": "dataverse",
    "api_version": 9.2,
    "entity_name": "vcon_storage",
    "uuid_field": "vcon_uuid",
    "data_field": "vcon_data",
    "subject_field": "vcon_subject",
    "created_at_field": "vcon_created_at",
}
OPENAI = {"organization_key": "org-1", "project_key": "proj_1", "api_key": "sk-1", "vector_store_id": "vs_1"}
SEARCH = {"name": "elasticsearch", "cloud_id": "", "api_key": "", "index": "vcon_index", "ca_certs": None}
CLOUD = {"cloud_id": "calls:ZXUuY2xvdWQuZXhhbXBsZSRhMWIyJGMzZDQ=", "api_key": "x"}
VECTORS = {
    "host": "localhost",
    "port": "19530",
    "collection_name": "vcons",
    "embedding_model": "text-embedding-3-small",
    "embedding_dim": 1536,
    "api_key": "x",
    "organization": None,
    "create_collection_if_missing": True,
    "skip_if_exists": True,
    "index_type": "IVF_FLAT",
    "metric_type": "L2",
    "nlist": 128,
    "m": 16,
    "ef_construction": 200,
}
WAREHOUSE = {"name": "spaceandtime", "api_key": "k", "table_name": "vcons", "write_biscuit": "b", "read_biscuit": ""}
RETRIES = {"timeout": 30, "transient_retries": 3, "transient_backoff_base_s": 0.5}


@pytest.mark.parametrize(
    ("module", "options"),
    [
        ("s3", {**LOGIN, "aws_bucket": "calls"}),
        (
            "s3",
            {
                **LOGIN,
                "aws_bucket": "calls",
                "aws_region": "us-east-1",
                "endpoint_url": "http://h:9000",
                "s3_path": "a",
            },
        ),
        ("sftp", {**SFTP, "add_timestamp_to_filename": True, "filename": "vcon", "extension": "json"}),
        ("mongo", None),
        ("mongo", MONGO),
        ("vcon_mcp", None),
        ("vcon_mcp", {"base_url": "http://127.0.0.1:3000/api/v1", "api_key": "", **RETRIES}),
        ("chatgpt_files", {**OPENAI, "purpose": "assistants"}),
        ("dataverse", DATAVERSE),
        ("dataverse", {**DATAVERSE, **ENTITY}),
        (
            "elasticsearch",
            {**SEARCH, "url": "https://h:9200", "username": "elastic", "password": "x", "index_prefix": ""},
        ),
        ("elasticsearch", CLOUD),
        # Its package is large, and only there for the tests that take long.
        pytest.param("milvus", VECTORS, marks=pytest.mark.long),
        ("spaceandtime", {**WAREHOUSE, "authenticate": True, "auto_reconnect": True}),
        ("utopia", {"kb_id": "a", "email": "b", "password": "c"}),
        ("utopia", {"base_url": "http://h", "kb_id": "a", "email": "b", "password": "c", **RETRIES}),
    ],
)
def test_it_is_taken_as_it_is(tmp_path: Path, module: str, options: dict[str, Any] | None) -> None:
    """The old name of the module is the one thing to change."""
    storage = {"module": f"storage.{module}"} | ({"options": options} if options is not None else {})
    chain = {"links": [], "storages": ["it"], "ingress_lists": ["in"]}
    (tmp_path / "config.yml").write_text(yaml.safe_dump({"storages": {"it": storage}, "chains": {"main": chain}}))

    config, findings = check(tmp_path / "config.yml", {})
    assert config is not None
    assert {finding.rule for finding in findings} <= {"deprecated", "never-expires"}


@pytest.mark.parametrize(
    ("module", "missing"),
    [
        ("chatgpt_files", ["api_key", "vector_store_id"]),
        ("dataverse", ["url", "tenant_id", "client_id", "client_secret"]),
        ("s3", ["aws_bucket"]),
        ("sftp", ["username"]),
        ("utopia", ["kb_id", "email", "password"]),
    ],
)
def test_without_options_the_check_says_what_is_missing(tmp_path: Path, module: str, missing: list[str]) -> None:
    """Before the first vCon."""
    chain = {"links": [], "storages": ["it"], "ingress_lists": ["in"]}
    config = {"storages": {"it": {"module": f"storages.{module}"}}, "chains": {"main": chain}}
    (tmp_path / "config.yml").write_text(yaml.safe_dump(config))

    _, findings = check(tmp_path / "config.yml", {})
    errors = sorted(finding.message for finding in findings if finding.level == "error")
    assert errors == sorted(f"storage 'it': option '{name}' is missing" for name in missing)
