"""A hub on loopback: repositories are folders, and files have the hashes and headers that its library wants."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """A hub's address and folder, what was asked of it, and how it misbehaves.

    `cuts` maps a file's name to the bytes after which a connection breaks off, once each; `wrong` names files that are
    sent with other bytes than their hash tells. `token` is what who pushes must show; `large` holds what was pushed, by
    its hash.
    """

    folder: Path
    address: str = ""
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    cuts: dict[str, int] = field(default_factory=dict)
    wrong: set[str] = field(default_factory=set)
    token: str = ""
    large: dict[str, bytes] = field(default_factory=dict)


def _mode(name: str) -> str:
    return "lfs" if name.endswith((".safetensors", ".bin")) else "regular"


def etag(content: bytes, name: str) -> str:
    """Return what the hub calls a file by: SHA-256 of large ones, git's hash of others."""
    if _mode(name) == "lfs":
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def serving(folder: Path) -> Iterator[Hub]:
    """Serve a folder OWNER/REPO/FILE… as a hub until the block ends."""
    hub = Hub(folder)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer(send=False)

        def do_GET(self) -> None:
            self._answer(send=True)

        def do_POST(self) -> None:
            path = self.path.split("?")[0].strip("/")
            content = self.rfile.read(int(self.headers["Content-Length"]))
            hub.asked.append(("POST", path, ""))
            if hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}":
                return self._tell({"error": "Invalid credentials"}, 401)
            if path == "api/repos/create":
                told = json.loads(content)
                name = "/".join(filter(None, (told.get("organization"), told["name"])))
                (hub.folder / name).mkdir(parents=True, exist_ok=True)
                return self._tell({"url": f"{hub.address}/{name}", "name": name, "id": name})
            if path == "api/validate-yaml":
                return self._tell({"errors": [], "warnings": []})
            if path.endswith("/info/lfs/objects/batch"):
                objects = json.loads(content)["objects"]
                for each in objects:
                    each["actions"] = {"upload": {"href": f"{hub.address}/lfs/{each['oid']}", "header": {}}}
                return self._tell({"transfer": "basic", "objects": objects})
            repository, _, what = path.removeprefix("api/models/").rpartition("/")[0].rpartition("/")
            if what == "preupload":
                files = [
                    {"path": each["path"], "uploadMode": _mode(each["path"]), "shouldIgnore": False}
                    for each in json.loads(content)["files"]
                ]
                return self._tell({"files": files})
            assert what == "commit", path
            for line in content.decode().splitlines():
                told = json.loads(line)
                value = told["value"]
                if told["key"] == "file":
                    (hub.folder / repository / value["path"]).write_bytes(base64.b64decode(value["content"]))
                elif told["key"] == "lfsFile":
                    (hub.folder / repository / value["path"]).write_bytes(hub.large[value["oid"]])
            return self._tell(
                {"success": True, "commitOid": COMMIT, "commitUrl": f"{hub.address}/{repository}/commit/x"}
            )

        def do_PUT(self) -> None:
            hub.large[self.path.rpartition("/")[2]] = self.rfile.read(int(self.headers["Content-Length"]))
            self._tell({})

        def _tell(self, value: object, status: int = 200) -> None:
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _answer(self, *, send: bool) -> None:
            path = self.path.split("?")[0].strip("/")
            hub.asked.append((self.command, path, self.headers.get("Range") or ""))
            repository, _, rest = path.partition("/resolve/")
            revision, _, name = rest.partition("/")
            file = hub.folder / repository / name
            if not (hub.folder / repository).is_dir():
                return self._refuse("RepoNotFound")
            if revision not in ("main", COMMIT):
                return self._refuse("RevisionNotFound")
            if not file.is_file():
                return self._refuse("EntryNotFound")
            content = file.read_bytes()
            tag = etag(content, name)
            if name in hub.wrong:
                content = bytes(255 - byte for byte in content[:1]) + content[1:]
            start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
            body = content[start:]
            self.send_response(206 if start else 200)
            self.send_header("ETag", f'"{tag}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(len(body)))
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.end_headers()
            if send and name in hub.cuts:
                self.wfile.write(body[: hub.cuts.pop(name)])
                self.close_connection = True
                return None
            if send:
                self.wfile.write(body)
            return None

        def _refuse(self, code: str) -> None:
            self.send_response(404)
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", "not here")
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", "0")
            self.end_headers()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
