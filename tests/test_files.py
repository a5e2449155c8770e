"""Files that appear whole or not at all."""

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from onebyone import files
from onebyone.errors import OutputError
from onebyone.files import check_writable, json_text, share, write_text


class TestWriteText:
    def test_writes_and_replaces(self, tmp_path: Path) -> None:
        path = tmp_path / "a.txt"
        write_text(path, "first")
        write_text(path, "sécond ×")
        assert path.read_text(encoding="utf-8") == "sécond ×"
        assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]

    def test_missing_folder(self, tmp_path: Path) -> None:
        with pytest.raises(OutputError, match=r"a\.txt cannot be written: No such file"):
            write_text(tmp_path / "no" / "a.txt", "text")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("stage", ["close", "replace"])
    @pytest.mark.parametrize(
        "failure", [OSError(28, "No space left on device"), KeyboardInterrupt()]
    )
    def test_nothing_is_left_and_the_old_stays(
        self,
        stage: str,
        failure: BaseException,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def fail(*args: Any, **kwargs: Any) -> None:
            raise failure

        path = tmp_path / "a.txt"
        path.write_text("old")
        with monkeypatch.context() as patch:
            patch.setattr(files.os, stage, fail)
            with pytest.raises((OutputError, KeyboardInterrupt)) as caught:
                write_text(path, "new")
        assert isinstance(failure, KeyboardInterrupt) or "No space" in str(caught.value)
        assert path.read_text() == "old"
        assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_share_gives_the_permissions_of_new_files(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.touch(mode=0o600)
    before = os.umask(0o027)
    try:
        share(path)
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


class TestCheckWritable:
    def test_leaves_nothing_and_makes_no_parents(self, tmp_path: Path) -> None:
        check_writable(tmp_path / "a" / "b" / "c.json")
        assert list(tmp_path.iterdir()) == []

    def test_refuses(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(**kwargs: Any) -> str:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(files.tempfile, "mkdtemp", refuse)
        with pytest.raises(OutputError, match=r"a cannot be written: Permission denied; give"):
            check_writable(tmp_path / "a")


class TestJsonText:
    @pytest.mark.parametrize(
        "values",
        [{}, [], {"a": [1, 2.5, None, True, "ü\n"]}, {"a": {"b": [[1, 2]] * 60, "c": "x" * 200}}],
    )
    def test_reads_back(self, values: Any) -> None:
        assert json.loads(json_text(values)) == values

    def test_short_values_stay_on_one_line(self) -> None:
        text = json_text({"long": "x" * 160, "kernel": [3, 3], "layers": [{"a": 1}] * 30})
        assert '  "kernel": [3, 3],\n' in text
        assert text.count('    {"a": 1}') == 30
        assert max(map(len, text.splitlines())) <= 180


class TestStreams:
    def test_a_pipe_is_written_to(self, tmp_path: Path) -> None:
        pipe = tmp_path / "pipe"
        os.mkfifo(pipe)
        handle = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
        try:
            check_writable(pipe)
            write_text(pipe, "text")
            assert os.read(handle, 10) == b"text"
        finally:
            os.close(handle)
        assert stat.S_ISFIFO(pipe.stat().st_mode)

    def test_a_link_stays_and_what_it_leads_to_is_replaced(self, tmp_path: Path) -> None:
        (tmp_path / "far").mkdir()
        file, link = tmp_path / "far" / "file", tmp_path / "link"
        file.write_text("old")
        link.symlink_to(file)
        write_text(link, "new")
        assert link.is_symlink()
        assert file.read_text() == "new"
        assert [p.name for p in file.parent.iterdir()] == ["file"]
