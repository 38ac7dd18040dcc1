"""Every member that links may use, each once; what is wrong raises, and the vCon is a dead letter."""

import asyncio
import base64
import json
from types import SimpleNamespace

# A helper imports like the links do.
from lib.metrics import increment_counter


def run(names, vcon_uuid, link_name, opts):
    n = SimpleNamespace(**names)
    use_vcon(n)
    use_vcon_redis(n, vcon_uuid)
    use_queue(n, vcon_uuid)
    use_redis_mgr(n, vcon_uuid)
    use_metrics(n)
    use_models(n, vcon_uuid, opts)
    use_rest(n, vcon_uuid)
    asyncio.run(use_async(n, vcon_uuid))
    use_storage(n, vcon_uuid)

    vcon_redis = n.VconRedis()
    vcon = vcon_redis.get_vcon(vcon_uuid)
    vcon.add_attachment(body={"by": link_name}, type="acme", encoding="none")
    vcon.add_tag("acme", link_name)
    vcon_redis.store_vcon(vcon, ttl=opts["ttl"])
    n.VconQueue().enqueue("acme:next", vcon_uuid)
    increment_counter("acme.runs", attributes={"link.name": link_name, "vcon.uuid": vcon_uuid})
    return vcon_uuid


def use_vcon(n):
    vcon = n.Vcon.build_new()
    assert (vcon.vcon, vcon.group, vcon.redacted, vcon.subject) == ("0.0.1", [], {}, None)
    assert (vcon.uuid[14], vcon.updated_at, vcon.appended, vcon.tags) == ("8", None, None, None)
    assert vcon.created_at.endswith("+00:00")
    vcon.add_party({"tel": "+15550100", "meta": {"role": "agent"}})
    assert (vcon.find_party_index("meta.role", "agent"), vcon.find_party_index("tel", "x")) == (0, None)
    vcon.add_dialog({"type": "text", "parties": [0], "body": "hello", "encoding": "none"})
    assert (vcon.find_dialog("type", "text")["body"], vcon.find_dialog("type", "x")) == ("hello", None)
    vcon.add_tag("colour", "green")
    vcon.add_tag(tag_name="colour", tag_value="blue")
    assert (vcon.get_tag("colour"), vcon.get_tag("none")) == ("green", None)
    assert json.loads(vcon.tags["body"]) == ["colour:green", "colour:blue"]
    vcon.add_attachment(type="json", body='{"a": 1}', encoding="json")
    assert vcon.find_attachment_by_purpose("json") is vcon.find_attachment_by_type("json")
    assert vcon.decoded_body(vcon.attachments[-1]) == {"a": 1}
    vcon.add_analysis(type="summary", dialog=0, vendor="acme", body={"b": 2}, extra={"vendor_schema": {"model": "m"}})
    entry = vcon.find_analysis_by_type("summary")
    assert (entry["body"], entry["encoding"], entry["vendor_schema"]) == ('{"b":2}', "json", {"model": "m"})
    assert n.Vcon.with_decoded_body(entry)["body"] == {"b": 2}
    for name in ("parties", "dialog", "attachments", "analysis"):
        setattr(vcon, name, list(getattr(vcon, name)))
    again = n.Vcon.build_from_json(vcon.to_json())
    assert again.hash == vcon.hash
    assert (again.dumps(), again.to_dict()) == (vcon.dumps(), vcon.vcon_dict)
    assert n.Vcon("no JSON").vcon_dict == {}
    assert n.Vcon.uuid8_domain_name("acme.example")[14] == n.Vcon.uuid8_time(7)[14] == "8"


def use_vcon_redis(n, vcon_uuid):
    vcon_redis = n.VconRedis()
    assert vcon_redis.DEFAULT_TTL == n.VconRedis.DEFAULT_TTL == n.settings.VCON_REDIS_EXPIRY
    assert vcon_redis.get_vcon("00000000-0000-8000-8000-000000000000") is None
    document = vcon_redis.get_vcon_dict(vcon_uuid)
    document["subject"] = "seen by acme"
    vcon_redis.store_vcon_dict(document)
    assert vcon_redis.get_vcon(vcon_uuid).subject == "seen by acme"
    assert n.VconRedis._load_from_storage(vcon_uuid)["subject"] == "seen by acme"
    assert n.VconRedis._enforce_spec_on_write({"uuid": "x", "group": []}) == {"uuid": "x", "vcon": "0.4.0"}
    n.VconRedis._stringify_json_body(entry := {"body": [1]})
    assert entry["body"] == "[1]"
    assert vcon_redis.set_expiry(vcon_uuid, 60)
    assert vcon_redis.get_ttl(vcon_uuid) == 60
    assert vcon_redis.remove_expiry(vcon_uuid)
    assert vcon_redis.get_ttl(vcon_uuid) == -1


def use_queue(n, vcon_uuid):
    queue = n.VconQueue()
    queue.enqueue_front("acme:front", vcon_uuid)
    queue.enqueue_dlq("acme", vcon_uuid)
    queue.enqueue_storage_dlq("acme", vcon_uuid, retention_seconds=60)
    assert queue.set_vcon_ttl(vcon_uuid, 60)
    assert queue.dequeue(["acme:nothing"], timeout=0.01) is None
    assert queue.queue_length("acme:nothing") == 0
    n.queue_metrics.register_ingress_list_length_gauge(n.redis_mgr.get_client())
    n.queue_metrics.register_redis_memory_gauge(n.redis_mgr.redis)
    assert n.dlq_utils.get_ingress_list_dlq_name("acme") == "DLQ:acme"
    assert n.dlq_utils.get_storage_dlq_name("s3") == "DLQ:storage:s3"


def use_redis_mgr(n, vcon_uuid):
    key = f"acme:{vcon_uuid}:{n.__name__}"
    n.redis_mgr.set_key(key, {"a": 1})
    assert n.redis_mgr.get_key(key) == {"a": 1}
    assert n.redis_mgr.show_keys(f"{key}*") == [key]
    assert n.redis_mgr.redis.get(key) == '{"a": 1}'
    assert n.redis_mgr.delete_key(key) == 1
    assert n.redis_mgr.get_client().json().get(f"vcon:{vcon_uuid}")["uuid"] == vcon_uuid


def use_metrics(n):
    n.metrics.record_histogram("acme.secs", 0.5, attributes={"link.name": "acme"})
    n.metrics.increment_counter("acme.seen", 2)
    n.metrics.add_updown_counter("acme.open", 1)
    n.metrics.add_updown_counter("acme.open", -1)
    n.metrics.register_observable_gauge("acme.gauge", lambda options: [], description="none")
    n.metrics.stats_count("acme", tags=["a:b"])
    n.metrics.stats_gauge("acme", 1, tags=["a:b"])


def use_models(n, vcon_uuid, opts):
    client = n.openai_client.get_openai_client({"OPENAI_API_KEY": "sk-acme"}, max_retries=1)
    assert (client.api_key, client.max_retries) == ("sk-acme", 1)
    proxy = {"LITELLM_PROXY_URL": "http://proxy.example", "LITELLM_MASTER_KEY": "k", "model": "claude-3"}
    assert str(n.openai_client.get_async_openai_client(proxy).base_url) == "http://proxy.example/v1/"
    assert n.openai_client.get_vendor_from_opts(proxy) == "anthropic"
    assert n.openai_client.DEFAULT_AZURE_OPENAI_API_VERSION == "2024-10-21"
    n.ai_usage.send_ai_usage_data_for_tracking(
        vcon_uuid=vcon_uuid,
        input_units=3,
        output_units=4,
        unit_type="tokens",
        type="VCON_PROCESSING",
        send_ai_usage_data_to_url=opts["usage_url"],
        ai_usage_api_token="t",
        model="m",
        sub_type="ACME",
    )


def use_rest(n, vcon_uuid):
    client, context = n.redis_mgr.get_client(), {"trace_id": "0" * 32}
    assert n.context_utils.get_context_key("in", vcon_uuid) == f"context:in:{vcon_uuid}"
    n.context_utils.store_context_sync(client, "in", vcon_uuid, context)
    assert n.context_utils.retrieve_context(client, "in", vcon_uuid) == context
    assert n.context_utils.extract_otel_trace_context() is None
    n.error_tracking.init_error_tracker()
    n.error_tracking.init_sentry()
    n.error_tracking.capture_exception(ValueError("captured"))
    n.tracing.init_tracing()
    old = {"appended": {}, "attachments": [{"type": "t"}]}
    n.normalize_legacy_fields(old)
    assert old == {"amended": {}, "attachments": [{"purpose": "t"}]}
    document = n.Vcon.build_new().to_dict()
    assert n.to_legacy(document, n.SUPPORTED_VERSIONS[0])["vcon"] == "0.0.1"
    assert n.to_configured_legacy(document) == document
    assert n.phone_number_utils.get_e164_number("(555) 010-0123") == "+15550100123"
    assert n.redaction.safe_opts({"api_key": "s", "model": "m"}) == {"model": "m"}
    assert n.redaction.is_sensitive_name("LITELLM_PROXY_URL")
    body = {"body": base64.urlsafe_b64encode(b"\xff\xfe").decode().rstrip("="), "encoding": "base64url"}
    assert n.dialog_body.decode_inline_dialog_body(body) == b"\xff\xfe"
    only_if: n.filters.OnlyIfFilter = {"section": "analysis", "type": "none", "includes": "x"}
    options: n.filters.FilterOptions = {"only_if": only_if}
    assert not n.filters.is_included(options, n.Vcon.build_new())
    assert n.filters.randomly_execute_with_sampling({})
    assert n.process_utils.async_runner(asyncio.sleep, 0) is None
    n.process_utils.start_process(int).join()
    n.process_utils.start_async_process(asyncio.sleep, 0).join()
    assert n.version.get_version_info()["version"] == n.version.get_version()
    assert n.version.get_git_commit() in n.version.get_version_string()
    assert n.version.get_build_time()
    assert n.config.get_config()["chains"]["acme"]["ingress_lists"] == ["in"]
    assert (n.config.get_worker_count(), n.config.get_vcon_concurrency()) == (1, 2)
    assert (n.config.is_parallel_storage_enabled(), n.config.get_start_method()) == (True, None)
    sections = n.config.Configuration
    assert sections.get_config()["links"]["server"]["module"] == "acme_server"
    assert list(sections.get_storages()) == ["archive"]
    assert (sections.get_followers(), sections.get_imports(), sections.get_ingress_auth()) == ({}, {}, {})


async def use_async(n, vcon_uuid):
    client, queue, vcon_redis = await n.redis_mgr.get_async_client(), n.VconQueue(), n.VconRedis()
    await queue.enqueue_async(client, "acme:async", vcon_uuid)
    assert await queue.queue_length_async(client, "acme:nothing") == 0
    assert await queue.dequeue_dlq_async(client, "acme:nothing") is None
    vcon = vcon_redis.get_vcon(vcon_uuid)
    await vcon_redis.store_vcon_async(client, vcon, ttl=60)
    await vcon_redis.store_vcon_dict_async(client, vcon.to_dict(), ttl=60)
    assert await vcon_redis.set_expiry_async(client, vcon_uuid, 50)
    assert await vcon_redis.get_ttl_async(client, vcon_uuid) == 50
    await n.context_utils.store_context_async(client, "in", f"{vcon_uuid}-async", {"trace_id": "1"})
    await client.rpush(f"acme:listen:{vcon_uuid}", "entry")
    async for entry in n.listen_list.listen_list(client, f"acme:listen:{vcon_uuid}"):
        assert entry == "entry"
        break
    await client.aclose()


def use_storage(n, vcon_uuid):
    storage = n.Storage("archive")
    storage.save(vcon_uuid)
    assert storage.get(vcon_uuid)["uuid"] == vcon_uuid
    assert storage.delete(vcon_uuid) is True
    assert storage.get(vcon_uuid) is None
    assert n.log_metrics(lambda storage, vcon_id: vcon_id)(storage, 7) == 7
