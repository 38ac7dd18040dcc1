"""docs/reference/check.md is run: each rule has a section, and each example has exactly the findings that it shows."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from conserver.components import check
from conserver.findings import RULES

PAGE = Path(__file__).parent.parent / "docs" / "reference" / "check.md"
SECTIONS = dict(re.findall(r"^## (\S+)\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL))


def blocks(section: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)


def run_example(section: str, folder: Path, rule: str) -> list[str]:
    for code in blocks(section, "python"):
        file = folder / code.partition("\n")[0].removeprefix("# ")
        file.parent.mkdir(exist_ok=True)
        file.write_text(code)
    (config,) = blocks(section, "yaml")
    (folder / "config.yml").write_text(config)
    env = {} if rule == "never-expires" else {"VCON_REDIS_EXPIRY": "0"}
    before = os.getcwd()
    os.chdir(folder)
    try:
        return [str(finding) for finding in check(Path("config.yml"), env)[1]]
    finally:
        os.chdir(before)


def test_each_rule_has_a_section_and_each_section_is_a_rule() -> None:
    """A rule without a page, or a page without a rule, fails here."""
    assert sorted(SECTIONS) == sorted(RULES)


@pytest.mark.parametrize("rule", sorted(RULES))
def test_the_example_has_exactly_the_findings_that_the_page_shows(rule: str, tmp_path: Path) -> None:
    """Reader and program agree to the column."""
    (shown,) = blocks(SECTIONS[rule], "text")

    found = run_example(SECTIONS[rule], tmp_path, rule)

    assert found == shown.splitlines()
    assert any(f"[{rule}]" in line for line in found)
