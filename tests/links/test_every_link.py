"""What holds for every link alike: configs of the existing conserver, no options, no vCon, a sealed one, a second run.

The links that ask services have the rest of it in files of their own, where there is a service to ask.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from conserver import VconNotFound, VconSealed
from conserver.ambient import Work, working
from conserver.components import check, load_link
from conserver.config import LinkConfig
from conserver.testing import throwaway_store, try_link
from tests.links.test_tag import SIGNED

NOBODY = "0190c0de-0000-8000-8000-000000000000"
LINKS = sorted(
    path.stem if path.is_file() else path.name
    for path in (Path(__file__).parents[2] / "links").iterdir()
    if path.suffix == ".py" or (path / "__init__.py").is_file()
)
#: Links that ask nobody, with options that let them do something.
LOCAL: dict[str, dict[str, Any]] = {
    "delay": {"seconds": 0},
    "diet": {"remove_dialog_body": True, "remove_analysis": True},
    "expire_vcon": {"seconds": 60},
    "jq_link": {"filter": ".parties | length > 0"},
    "sampler": {"method": "percentage", "value": 100},
    "tag": {"tags": ["a"]},
    "tag_router": {"tag_routes": {"a": "elsewhere"}},
    "webhook": {},
}
#: As they stand in configs of the existing conserver; the last four are modules that it has by these names only.
CONFIGS = """
links:
  analyze: {module: links.analyze, options: {OPENAI_API_KEY: key, prompt: Summarise, analysis_type: summary,
    model: gpt-4o, source: {analysis_type: transcript, text_location: body.paragraphs.transcript}}}
  label: {module: links.analyze_and_label, options: {OPENAI_API_KEY: key, response_format: {type: json_object}}}
  whole: {module: links.analyze_vcon, options: {OPENAI_API_KEY: key, remove_body_properties: true}}
  ask: {module: links.check_and_tag, options: {OPENAI_API_KEY: key, tag_name: sale, tag_value: 'yes',
    evaluation_question: Was anything sold?, verbosity: low, minimal_reasoning: true}}
  engaged: {module: links.detect_engagement, options: {OPENAI_API_KEY: key}}
  hugging: {module: links.hugging_llm_link, options: {HUGGINGFACE_API_KEY: key, max_length: 1000}}
  transcribe: {module: links.transcribe, options: {vendor: deepgram, vendor_options: {DEEPGRAM_KEY: key,
    minimum_duration: 60, api: {model: nova-2}}}}
  wtf: {module: links.wtf_transcribe, options: {vfun-server-url: 'http://vfun:4384/transcribe', diarize: true}}
  datatrails: {module: links.datatrails, options: {vcon_operation: vcon_created, auth: {type: oidc-client-credentials,
    token_endpoint: 'https://app.datatrails.ai/archivist/iam/v1/appidp/token', client_id: me, client_secret: key}}}
  delay: {module: links.delay, options: {seconds: 5}}
  diet: {module: links.diet, options: {remove_dialog_body: true, remove_attachment_types: [image/jpeg]}}
  expire: {module: links.expire_vcon, options: {seconds: 86400}}
  jq: {module: links.jq_link, options: {filter: '.analysis | length > 0', forward_matches: true}}
  slack: {module: links.post_analysis_to_slack, options: {token: key, channel_name: alerts,
    default_channel_name: alerts, url: 'https://desk.example.com', analysis_to_post: summary}}
  sampler: {module: links.sampler, options: {method: percentage, value: 50}}
  tag: {module: links.tag, options: {tags: [iron, maiden]}}
  bare_tag: {module: links.tag}
  router: {module: links.tag_router, options: {tag_routes: {iron: iron_list}, forward_original: true}}
  webhook: {module: links.webhook, options: {webhook-urls: ['https://example.com/hook']}}
  old_openai: {module: links.openai_transcribe, options: {OPENAI_API_KEY: key, language: en}}
  old_groq: {module: links.groq_whisper, options: {API_KEY: key, Content-Type: audio/flac}}
  old_hugging: {module: links.hugging_face_whisper, options: {API_URL: 'https://api.example.com/w', API_KEY: key}}
  old_deepgram: {module: links.deepgram_link, options: {DEEPGRAM_KEY: key, api: {model: nova-2}}}
chains:
  main: {ingress_lists: [in], links: [analyze, label, whole, ask, engaged, hugging, transcribe, wtf, datatrails, delay,
    diet, expire, jq, slack, sampler, tag, bare_tag, router, webhook, old_openai, old_groq, old_hugging, old_deepgram]}
"""


def test_the_table_has_every_link() -> None:
    """A new one comes with its configs, and says whether it asks anybody."""
    modules = {line.partition("module: links.")[2].partition(",")[0].rstrip("}") for line in CONFIGS.splitlines()}

    assert set(LINKS) - modules == {"scitt"}, "scitt needs a key of its own: test_scitt.py has its config"
    assert set(LOCAL) <= set(LINKS)


def test_configs_of_the_existing_conserver_are_accepted(tmp_path: Path) -> None:
    """Every link with the options that it has there; modules by their old names are said to be that."""
    (tmp_path / "config.yml").write_text(CONFIGS)

    config, findings = check(tmp_path / "config.yml", {"VCON_REDIS_EXPIRY": "0"})

    assert [str(finding) for finding in findings if finding.rule != "deprecated"] == []
    assert sum(finding.rule == "deprecated" for finding in findings) == 4
    assert config is not None
    assert not config.waiting


@pytest.mark.parametrize("name", sorted(LOCAL))
def test_links_that_ask_nobody_need_no_options(name: str) -> None:
    """Their defaults count, where the existing conserver hands None to the link."""
    link = load_link(LinkConfig(name=name, module=f"links.{name}"))

    assert link.options is not None


@pytest.mark.parametrize("name", sorted(LOCAL))
def test_a_vcon_that_is_not_there_is_no_silent_stop(name: str) -> None:
    """Links that look at it say so; for the others the chain has looked before."""
    link = load_link(LinkConfig(name=name, module=f"links.{name}", options=LOCAL[name]))

    with working(Work(throwaway_store().writer())):
        if name in ("diet", "jq_link", "tag", "tag_router"):
            with pytest.raises(VconNotFound, match=NOBODY):
                link.run(NOBODY, link.name, link.options)
        else:
            assert link.run(NOBODY, link.name, link.options) == NOBODY


@pytest.mark.parametrize("name", sorted(LOCAL))
def test_a_signed_vcon_is_never_changed(name: str) -> None:
    """Who would have to change it says so; the others pass it on as it is."""
    if name in ("diet", "tag"):
        with pytest.raises(VconSealed, match="is signed"):
            try_link(f"links.{name}", LOCAL[name], on=SIGNED)
        return

    trial = try_link(f"links.{name}", LOCAL[name], on=SIGNED)

    assert trial.vcon.document == SIGNED


@pytest.mark.parametrize("name", sorted(LOCAL))
def test_a_second_run_changes_nothing_more(name: str) -> None:
    """As after a crash: `times` compares the vCon that the runs leave behind."""
    trial = try_link(f"links.{name}", LOCAL[name], times=3)

    assert trial.result == trial.vcon.uuid
