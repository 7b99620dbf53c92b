"""The figure of single factors is drawn from the tables of the page itself."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def draw(page: Path, out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "factor_figure.py"), str(page), "--out", str(out)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_page_has_the_tables_that_are_drawn(tmp_path: Path) -> None:
    page, out = ROOT / "docs" / "image_text_recipe.md", tmp_path / "new" / "factors.png"
    done = draw(page, out)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(out) and out.read_bytes().startswith(b"\x89PNG")
    other = tmp_path / "page.md"
    other.write_text(page.read_text(encoding="utf-8").replace("### Around the recipe itself", "### Elsewhere"))
    assert "no table below '### Around the recipe itself'" in draw(other, out).stderr
