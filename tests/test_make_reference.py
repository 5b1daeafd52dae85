from __future__ import annotations

import re
from pathlib import Path

import pytest
from docs.make_reference import DOCS, error_table, main, pages, settings_table

import purnet_serve.errors
from purnet_serve.errors import ServiceError, all_errors
from purnet_serve.settings import Settings, environment_name


def test_the_documentation_is_up_to_date() -> None:
    for path, text in pages().items():
        assert path.read_text(encoding="utf-8") == text, "run `make docs`"


def test_stale_pages_are_renewed_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    current = (DOCS / "api.md").read_text(encoding="utf-8")
    (tmp_path / "api.md").write_text(current.replace("upload_timeout", "x"), encoding="utf-8")
    main(tmp_path)
    assert len(capsys.readouterr().out.splitlines()) == 2
    for name in ("api.md", "settings.md"):
        assert (tmp_path / name).read_text(encoding="utf-8") == pages()[DOCS / name]
    main(tmp_path)
    assert capsys.readouterr().out == ""


def test_every_error_has_one_row_and_one_code() -> None:
    kinds = list(all_errors())
    codes = [kind.code for kind in kinds]
    assert len(set(codes)) == len(codes)
    for kind in kinds:
        assert f"| {kind.status} | `{kind.code}` | " in error_table()
        assert kind.__doc__ != ServiceError.__doc__


def test_the_tree_drawn_in_the_source_is_the_tree() -> None:
    drawn = re.findall(r"(\w+Error)\s+(\d{3})\s+(\w+)\n", f"{purnet_serve.errors.__doc__}\n")
    drawn += re.findall(r"(InternalError)\s+(\d{3})\s+(\w+)\n", f"{purnet_serve.errors.__doc__}\n")
    true = {(kind.__name__, str(kind.status), kind.code) for kind in all_errors()}
    assert set(drawn) == true


def test_every_setting_is_described() -> None:
    table = settings_table()
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert f"| `{environment_name(name)}` |" in table
