import json
import sys
from pathlib import Path

import pytest

from jointembed.cli import main
from jointembed.environment import report, shortened, variables


def test_the_command_prints_json_with_what_matters(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("JOINTEMBED_DATA", str(Path.home() / "data"))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(sys, "argv", ["jointembed", "env"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    out = capsys.readouterr().out
    found = json.loads(out)
    assert found["packages"]["torch"] and found["hardware"]["cores"] >= 1 and found["torch"]["threads"] >= 1
    assert found["variables"]["JOINTEMBED_DATA"] == "~/data"
    assert "secret" not in out and str(Path.home()) not in out


def test_only_known_variables_and_no_secret_among_them() -> None:
    given = {
        "OMP_NUM_THREADS": "2", "HF_TOKEN": "hf_x", "HF_ENDPOINT": "https://ada:pw@hub.example/", "AWS_REGION": "x",
        "PATH": "/bin", "JOINTEMBED_API_KEY": "x", "RANK": "0", "MY_RANK": "1", "TORCH_HOME": "/home/ada/weights",
    }  # fmt: skip
    assert variables(given) == {
        "HF_ENDPOINT": "https://...@hub.example/", "OMP_NUM_THREADS": "2", "RANK": "0", "TORCH_HOME": "~/weights",
    }  # fmt: skip
    assert report(given)["variables"]["RANK"] == "0"


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ("/home/ada/x:/home/bob/y", "~/x:~/y"),
        ("/Users/ada lovelace/runs", "~/runs"),
        (r"C:\Users\ada\runs", r"~\runs"),
        ("/data/home", "/data/home"),
    ],
)
def test_home_folders_of_anyone_are_shortened(text: str, short: str) -> None:
    assert shortened(text) == short
