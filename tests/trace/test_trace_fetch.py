"""Fetching from a server on this machine: what comes is kept when it is what was published, and nothing else ever is."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hetserve.errors import ChecksumError, HetserveError, ResourceError, SpecError, UnsupportedError, UsageError
from hetserve.profile.published.files import COLLECTIONS
from hetserve.trace import files
from hetserve.trace.fetch import SourceFile, fetch, named, present, sources

CONV = b"TIMESTAMP,ContextTokens,GeneratedTokens\r\n2023-11-16 18:15:46.6805900,374,44\r\n"


@dataclass
class Published:
    """A server's files by address, and what it was asked for."""

    port: int = 0
    files: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.port}/{name}"


@pytest.fixture
def published(monkeypatch) -> Iterator[Published]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    what = Published()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            what.asked.append(self.path)
            body = what.files.get(self.path[1:])
            self.send_response(200 if body is not None else 404)
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        what.port = server.server_port
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield what
        server.shutdown()


def file(url: str, content: bytes = CONV, path: str = "traces/azure2023/AzureLLMInferenceTrace_conv.csv") -> SourceFile:
    return SourceFile(path, url, hashlib.sha256(content).hexdigest(), len(content))


def left(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def table(tmp_path: Path, changes: dict[str, str]) -> Path:
    """A table of one source with some of its values changed, or others added."""
    one = file("http://127.0.0.1:9/a")
    source = {"name": '"azure-conv"', "kind": '"trace"', "about": '"x"', "licence": '"CC-BY-4.0"', "home": '"https://example.org"'}
    row = {"path": f'"{one.path}"', "url": f'"{one.url}"', "sha256": f'"{one.sha256}"', "bytes": str(one.bytes)}
    source |= {key: value for key, value in changes.items() if key in source}
    row |= {key: value for key, value in changes.items() if key not in source}
    lines = ["[[source]]", *(f"{key} = {value}" for key, value in source.items())]
    lines += ["[[source.file]]", *(f"{key} = {value}" for key, value in row.items())]
    path = tmp_path / "sources.toml"
    path.write_text("\n".join(lines))
    return path


def test_it_comes_and_is_found(published, tmp_path) -> None:
    published.files["conv"] = CONV
    wanted, heard = file(published.url("conv")), []
    assert present(wanted, tmp_path) is None
    target = fetch(wanted, tmp_path / "new", heard.append)
    assert target.read_bytes() == CONV and sum(heard) == len(CONV) and left(tmp_path) == [target]
    assert present(wanted, tmp_path / "new") == target == files.find(tmp_path / "new", "azure-conv")
    assert files.parse(CONV, target).tolist() == [[374, 44]]


@pytest.mark.parametrize("sent", [CONV.replace(b"374", b"375"), CONV[:-5], CONV + b"x" * 3, CONV + b"x" * 2**20, b""])
def test_what_is_not_what_was_published_is_not_kept(published, tmp_path, sent) -> None:
    """Nor does it touch what is there, wrong as that may be. No more is read than there should be, and a chunk."""
    published.files["conv"] = sent
    wanted, heard = file(published.url("conv")), []
    old = tmp_path / wanted.path
    old.parent.mkdir(parents=True)
    old.write_bytes(b"old")
    with pytest.raises(ChecksumError, match="something else than was published") as caught:
        fetch(wanted, tmp_path, heard.append)
    assert caught.value.exit_code == 11 and wanted.url in caught.value.message and left(tmp_path) == [old] and old.read_bytes() == b"old"
    assert sum(heard) <= len(CONV) + 2**16
    published.files["conv"] = CONV
    assert fetch(wanted, tmp_path).read_bytes() == CONV


def test_no_server_and_no_such_file(published, tmp_path) -> None:
    with pytest.raises(ResourceError, match="answers 404") as caught:
        fetch(file(published.url("gone")), tmp_path)
    assert "traces/azure2023" in caught.value.hint and not left(tmp_path)
    with pytest.raises(ResourceError, match="is there a network") as caught:
        fetch(file("http://127.0.0.1:9/conv"), tmp_path)
    assert "by hand: get http://127.0.0.1:9/conv" in caught.value.hint and not left(tmp_path)


@pytest.mark.parametrize("place", ["traces/azure2023/A.csv", "traces/azure2023/A.csv.gz", "azure2023/A.csv", "azure2023/A.csv.gz"])
def test_what_is_there_and_right(tmp_path, place) -> None:
    wanted, there = file("http://127.0.0.1:9/a", path="traces/azure2023/A.csv"), tmp_path / place
    there.parent.mkdir(parents=True)
    there.write_bytes(gzip.compress(CONV) if place.endswith(".gz") else CONV)
    assert present(wanted, tmp_path) == there
    there.write_bytes(there.read_bytes()[:-9])
    assert present(wanted, tmp_path) is None


def test_the_packaged_table() -> None:
    """Everything it names is where the readers look, from public projects, at one commit."""
    known = sources()
    assert {one.name for one in known if one.kind == "profile"} == set(COLLECTIONS)
    assert {one.licence for one in known} <= {"MIT", "Apache-2.0", "CC-BY-4.0"}
    for one in known:
        for part in one.file:
            host, project = part.url.removeprefix("https://").split("/", 1)
            if host == "media.githubusercontent.com":  # large files
                project = project.removeprefix("media/")
            else:
                assert host == "raw.githubusercontent.com"
            owner, name, commit, *_ = project.split("/")
            assert one.home == f"https://github.com/{owner}/{name}" and len(commit) == 40
    for dataset in ("azure-conv", "azure-code"):
        assert [part.path for part in named(dataset, known).file] == [f"traces/{files.FILES[dataset][0]}"]
    paths = [part.path for one in known for part in one.file]
    assert len(paths) == len(set(paths)) > 70


def test_names() -> None:
    with pytest.raises(UsageError) as caught:
        named("azure-con", sources())
    assert "did you mean 'azure-conv'" in caught.value.hint
    with pytest.raises(UnsupportedError, match="Parquet") as unsupported:
        named("aiconfigurator", sources())
    assert "https://github.com/ai-dynamo" in unsupported.value.hint


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"path": '"traces/../../etc/passwd"'}, "stays below it"),
        ({"path": '"/etc/passwd"'}, "stays below it"),
        ({"path": '"profiles/x.csv"'}, "begins with traces/"),
        ({"url": '"file:///etc/passwd"'}, "http or https"),
        ({"sha256": '"abc"'}, "64 lower-case hexadecimal digits"),
        ({"bytes": "0"}, "a size in bytes"),
        ({"kind": '"tracks"'}, "known: trace, profile"),
        ({"nmae": '"x"'}, "unknown key 'nmae'"),
    ],
)
def test_a_table_that_makes_no_sense(tmp_path, changes, said) -> None:
    with pytest.raises(HetserveError) as caught:
        sources(table(tmp_path, changes))
    assert isinstance(caught.value, SpecError) and said in f"{caught.value.message} {caught.value.hint}"


def test_a_table_that_is_none(tmp_path) -> None:
    (tmp_path / "sources.toml").write_text("[[source")
    for path in (tmp_path / "sources.toml", tmp_path / "nowhere.toml"):
        with pytest.raises(SpecError, match="cannot be read as a table of sources"):
            sources(path)
