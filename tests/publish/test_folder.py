"""Folders of published files."""

import json

import pytest

from effbench.plugin import InputError
from effbench.publish.folder import MANIFEST, Folder
from tests.cli.test_publish import names


def test_folders_that_become_empty_go_with_their_files(tmp_path):
    folder = Folder(tmp_path / "site")
    folder.write({"a/b/one.txt": b"1", "a/two.txt": b"2"})
    assert folder.write({"a/two.txt": b"2"}) == ["a/b/one.txt"]
    assert not (tmp_path / "site/a/b").exists()
    assert (tmp_path / "site/a/two.txt").read_bytes() == b"2"


def test_a_publish_that_was_cut_short_leaves_nothing_unknown(tmp_path, monkeypatch):
    folder = Folder(tmp_path)
    folder.write({"old.txt": b"old"})

    def fail(file, content):
        if file.name == "second.txt":
            raise InputError("disk full")
        file.write_bytes(content)

    monkeypatch.setattr("effbench.publish.folder.write_atomic", fail)
    with pytest.raises(InputError):
        folder.write({"first.txt": b"1", "second.txt": b"2"})
    monkeypatch.undo()
    assert folder.write({"third.txt": b"3"}) == ["first.txt", "old.txt", "second.txt"]
    assert names(tmp_path) == {"third.txt", MANIFEST}


@pytest.mark.parametrize(
    "name",
    [
        "../out.txt",
        "/etc/passwd",
        "a/../../out.txt",
        "",
        "a//b",
        "./a",
        "a\\b",
        "c:a",
        "a\0b",
        "a\nb",
        "link/out.txt",
        MANIFEST,
    ],
)
def test_a_file_that_would_leave_the_folder_is_refused_before_anything_is_written(tmp_path, name):
    site, outside = tmp_path / "site", tmp_path / "outside"
    site.mkdir()
    outside.mkdir()
    (site / "link").symlink_to(outside)
    with pytest.raises(InputError, match="no name for a file within"):
        Folder(site).write({"good.txt": b"", name: b"x"})
    assert names(tmp_path) == set()


def test_a_manifest_cannot_name_files_outside(tmp_path):
    site = tmp_path / "site"
    site.mkdir()
    victim = tmp_path / "victim.txt"
    victim.write_text("kept")
    (site / MANIFEST).write_text(json.dumps({"files": ["../victim.txt"]}))
    with pytest.raises(InputError, match="victim"):
        Folder(site).write({"good.txt": b""})
    assert victim.exists()
    assert not (site / "good.txt").exists()


@pytest.mark.parametrize("text", ["{", "[]", '{"files": 1}', '{"files": [1]}', "{}"])
def test_a_broken_manifest_is_one_clear_line(tmp_path, text):
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(InputError, match="not a list of published files"):
        Folder(tmp_path).write({"good.txt": b""})


def test_a_link_is_replaced_and_not_followed(tmp_path):
    site, victim = tmp_path / "site", tmp_path / "victim.txt"
    site.mkdir()
    victim.write_text("same")
    (site / "a.txt").symlink_to(victim)
    assert Folder(site).stale({"a.txt": b"same"}) == ["a.txt shows other results"]
    Folder(site).write({"a.txt": b"new"})
    assert victim.read_text() == "same"
    assert (site / "a.txt").read_text() == "new"


def test_a_mark_in_a_page_s_text_hides_no_change(tmp_path):
    forged = b"effbench sha256:" + b"0" * 64
    folder = Folder(tmp_path)
    folder.write({"index.html": b"old " + forged})
    assert folder.stale({"index.html": b"new " + forged}) == ["index.html shows other results"]
    folder.write({"index.html": b"new " + forged})
    assert (tmp_path / "index.html").read_bytes() == b"new " + forged


def test_what_cannot_be_removed_is_one_clear_line(tmp_path):
    folder = Folder(tmp_path)
    folder.write({"old.txt": b"old"})
    (tmp_path / "old.txt").unlink()
    (tmp_path / "old.txt").mkdir()
    with pytest.raises(InputError, match=r"old\.txt: no longer published, but cannot be removed"):
        folder.write({"new.txt": b"new"})
