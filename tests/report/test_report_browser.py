import html
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

pytestmark = pytest.mark.browser

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--enable-logging=stderr",
)  # fmt: skip


@pytest.fixture(scope="module")
def chromium() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        pytest.skip("Debian's chromium is not installed")
    return found


def browse(
    chromium: str, page: Path, profile: Path, *flags: str, width: int = 1280
) -> subprocess.CompletedProcess[str]:
    size = (f"--window-size={width},1600", f"--user-data-dir={profile}")
    return subprocess.run(
        [chromium, *FLAGS, *size, *flags, page.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )


def complaints(stderr: str) -> list[str]:
    return [line for line in stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.parametrize("width", [1280, 390])
def test_report_opens_without_complaint(chromium: str, written_report: Path, tmp_path: Path, width: int) -> None:
    shot = tmp_path / "shot.png"
    done = browse(chromium, written_report, tmp_path / "profile", f"--screenshot={shot}", width=width)
    assert complaints(done.stderr) == []
    with Image.open(shot) as picture:
        assert picture.size == (width, 1600)
        colours = picture.convert("RGB").getcolors(maxcolors=1_000_000)
    assert colours is not None and len(colours) > 100
    assert max(count for count, _ in colours) < 0.9 * width * 1600  # not one blank sheet


def test_complaints_would_be_seen(chromium: str, tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text("<!doctype html><script>console.error('broken page')</script>")
    done = browse(chromium, page, tmp_path / "profile", f"--screenshot={tmp_path / 'shot.png'}")
    assert any("broken page" in line for line in complaints(done.stderr))


def test_nothing_is_wider_than_a_phone(chromium: str, written_report: Path, tmp_path: Path) -> None:
    # Chromium's own window is never narrower than 500 pixels, a frame is.
    inner = html.escape(written_report.read_text(encoding="utf-8"))
    page = tmp_path / "probe.html"
    page.write_text(
        f"""<!doctype html><title>?</title><iframe style="width: 360px; border: 0" srcdoc="{inner}"></iframe><script>
        document.querySelector("iframe").onload = event => {{
            const root = event.target.contentDocument.documentElement
            document.title = `${{root.clientWidth}} pixels hold ${{root.scrollWidth}}`
        }}</script>""",
        encoding="utf-8",
    )
    done = browse(chromium, page, tmp_path / "profile", "--dump-dom")
    assert "<title>360 pixels hold 360</title>" in done.stdout, re.findall("<title>.*?</title>", done.stdout)
