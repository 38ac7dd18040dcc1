"""Write what the pages of links and storages say of options, and the tables of all of them, from the code: `make docs`.

On docs/reference/links/NAME.md the table between the marks is written anew, and on docs/reference/links.md and
storages.md the tables of all components.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator
from pathlib import Path

from conserver.catalogue import Entry, describe
from conserver.imports import Kind
from conserver.reference import default_text, options_table, table

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "docs" / "reference"
BEGIN, END = "<!-- written by tools/component_reference.py -->", "<!-- end of what is written -->"


def entries(kind: Kind) -> list[Entry]:
    """Describe each of our links or storages."""
    names = [module.name for module in pkgutil.iter_modules([str(ROOT / f"{kind}s")])]
    return [describe(f"{kind}s.{name}", kind) for name in sorted(names)]


def pages(kind: Kind) -> Iterator[tuple[Path, str]]:
    """Give each page that has something written by this, and what that is."""
    found = entries(kind)
    for entry in found:
        yield _page_of(entry), options_table(entry.options)
    yield REFERENCE / f"{kind}s.md", f"{_overview(kind, found)}\n\n## All options\n\n{_all_options(kind, found)}"


def page(path: Path, written: str) -> str:
    """Return the text of a page with what stands between its marks written anew; raises ValueError if it has none."""
    before, begin, rest = (path.read_text() if path.exists() else "").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path} needs these two lines where its options are to stand:\n{BEGIN}\n{END}")
    return f"{before}{BEGIN}\n\n{written}\n\n{END}{after}"


def _page_of(entry: Entry) -> Path:
    return (REFERENCE / entry.module.replace(".", "/")).with_suffix(".md")


def _link_to(entry: Entry) -> str:
    path = entry.module.replace(".", "/")
    return f"[{entry.module.partition('.')[2]}]({path}.md)"


def _overview(kind: Kind, found: list[Entry]) -> str:
    rows = [
        (_link_to(one), one.summary, one.reads, one.writes, f"`{one.needs}`" if one.needs else "nothing")
        for one in found
    ]
    return table((kind, "what it does", "reads", "writes", "needs"), rows)


def _all_options(kind: Kind, found: list[Entry]) -> str:
    rows = [
        (_link_to(entry), ", ".join(f"`{name}`" for name in (option.name, *option.aliases)), option.type, default)
        for entry in found
        for option in entry.options
        for default in [default_text(option, entry.options)]
    ]
    return table((kind, "option", "type", "default"), rows)


def main() -> None:
    """Write the pages."""
    problems = []
    for path, written in [*pages("link"), *pages("storage")]:
        try:
            path.write_text(page(path, written))
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise SystemExit("\n".join(problems))


if __name__ == "__main__":
    main()
