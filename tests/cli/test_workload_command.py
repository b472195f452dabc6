"""hetserve workload as a user meets it, with a server on this machine in place of the publisher's."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
from functools import partial

import pytest

CONV = b"TIMESTAMP,ContextTokens,GeneratedTokens\r\n" + b"2023-11-16 18:15:46.6805900,374,44\r\n" * 5
PATH = "traces/azure2023/AzureLLMInferenceTrace_conv.csv"


@pytest.fixture
def site(tmp_path):
    """A folder that is served, with one file in it, and a table of sources that names it."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "conv.csv").write_bytes(CONV)
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        row = {"path": PATH, "url": f"http://127.0.0.1:{server.server_port}/conv.csv", "sha256": hashlib.sha256(CONV).hexdigest()}
        said = {"name": "azure-conv", "kind": "trace", "about": "x", "licence": "CC-BY-4.0", "home": "https://example.org"}
        lines = ["[[source]]", *(f'{key} = "{value}"' for key, value in said.items())]
        lines += ["[[source.file]]", *(f'{key} = "{value}"' for key, value in row.items()), f"bytes = {len(CONV)}"]
        (folder / "sources.toml").write_text("\n".join(lines))
        yield folder
        server.shutdown()


def test_fetched_once_and_used(run, site, tmp_path) -> None:
    data, asked = tmp_path / "data", ("--sources", str(site / "sources.toml"))
    done = run("workload", "fetch", "azure-conv", *asked, HETSERVE_DATA=str(data), no_proxy="127.0.0.1")
    assert done.returncode == 0 and "azure-conv: 1 file fetched" in done.stdout and "CC-BY-4.0" in done.stdout, done.stderr
    assert (data / PATH).read_bytes() == CONV
    (site / "conv.csv").unlink()  # nobody asks for it again
    again = run("workload", "fetch", "azure-conv", *asked, "-o", str(data), "--json")
    assert again.returncode == 0 and [one["fetched"] for one in json.loads(again.stdout)["files"]] == [False]
    listed = json.loads(run("workload", "list", *asked, "-o", str(data), "--json").stdout)["sources"]
    assert [(one["name"], one["present"]) for one in listed] == [("azure-conv", 1)]


def test_what_goes_wrong(run, site, tmp_path) -> None:
    asked = ("workload", "fetch", "azure-conv", "--sources", str(site / "sources.toml"))
    assert run(*asked, HETSERVE_DATA="").returncode == 2
    (site / "conv.csv").write_bytes(CONV[:-1])
    wrong = run(*asked, "-o", str(tmp_path / "data"), no_proxy="127.0.0.1")
    assert wrong.returncode == 11 and "something else than was published" in wrong.stderr
    assert not [path for path in (tmp_path / "data").rglob("*") if path.is_file()]
    by_hand = run("workload", "fetch", "sharegpt", "-o", str(tmp_path))
    assert by_hand.returncode == 9 and "https://github.com/Thesys-lab" in by_hand.stderr


def test_the_list_without_a_folder(run) -> None:
    done = run("workload", "list", HETSERVE_DATA="")
    assert done.returncode == 0 and "vidur" in done.stdout and "by hand" in done.stdout and "HETSERVE_DATA" in done.stderr
