"""The blocks of Python in the README and the docs run as they stand, in order, page by page."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = [ROOT / "docs", ROOT / "docs/samplers", ROOT / "docs/views"]
CANDIDATES = [ROOT / "README.md", *(page for folder in FOLDERS for page in sorted(folder.glob("*.md")))]
PAGES = [page for page in CANDIDATES if "```python" in page.read_text()]


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_the_blocks_of_a_page_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in re.finditer(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
        line = page.read_text()[: block.start(1)].count("\n")
        exec(compile("\n" * line + block.group(1), str(page), "exec"), names)


def test_there_are_pages_with_blocks() -> None:
    assert {"README.md", "docs/guide.md", "docs/readers_and_batches.md"} <= set(map(name, PAGES))


@pytest.mark.parametrize("page", [page for folder in FOLDERS[1:] for page in folder.glob("*.md")], ids=name)
def test_every_sampler_and_view_shows_itself_and_is_in_the_index(page: Path) -> None:
    assert page in PAGES
    assert f"({page.relative_to(FOLDERS[0]).as_posix()})" in (ROOT / "docs/README.md").read_text()


@pytest.mark.parametrize("page", CANDIDATES + sorted((ROOT / "docs/adr").glob("*.md")), ids=name)
def test_links_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing, f"{name(page)}: {missing}"
