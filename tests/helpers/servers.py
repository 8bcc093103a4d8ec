"""Local servers: plain files, and the parts of a Hugging Face Hub that huggingface_hub uses."""

import hashlib
import json
import threading
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlparse

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """Address of a server that runs inside the context."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Quiet(BaseHTTPRequestHandler):
    """A handler that logs nothing."""

    def log_message(self, format: str, *arguments: object) -> None:
        pass

    def answer(self, code: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(code)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@contextmanager
def file_server(files: dict[str, bytes]) -> Iterator[tuple[str, list[str]]]:
    """Address of a server of files by name, and the requested names."""
    asked: list[str] = []

    class Handler(Quiet):
        def do_GET(self) -> None:
            name = self.path.lstrip("/")
            asked.append(name)
            self.answer(200, files[name]) if name in files else self.answer(404)

    with serving(Handler) as address:
        yield address, asked


@contextmanager
def hub_server(repositories: dict[str, dict[str, bytes]]) -> Iterator[str]:
    """Address of a Hub with files by repository; uploads change them."""

    class Handler(Quiet):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            words = unquote(urlparse(self.path).path).strip("/").split("/")
            if words[:2] == ["api", "models"]:
                self.about("/".join(words[2:4]))
                return
            repository, file = "/".join(words[:2]), "/".join(words[4:])
            if repository not in repositories:
                self.answer(404, X_Error_Code="RepoNotFound")
            elif file not in repositories[repository]:
                self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
            else:
                body = repositories[repository][file]
                tag = f'"{hashlib.sha1(body).hexdigest()}"'
                self.answer(200, body, ETag=tag, X_Repo_Commit=COMMIT, Accept_Ranges="bytes")

        def about(self, repository: str) -> None:
            if repository not in repositories:
                self.answer(404, X_Error_Code="RepoNotFound")
                return
            files = repositories[repository]
            if "/tree/" in self.path:
                found: object = [
                    {"type": "file", "path": name, "size": len(body), "oid": "0" * 40} for name, body in files.items()
                ]
            else:
                found = {"id": repository, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
            self.answer(200, json.dumps(found).encode(), Content_Type="application/json")

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            words = unquote(urlparse(self.path).path).strip("/").split("/")
            repository = "/".join(words[2:4])
            if words == ["api", "repos", "create"]:
                wanted = json.loads(body)
                name = f"{wanted.get('organization') or 'user'}/{wanted['name']}"
                repositories.setdefault(name, {})
                self.answer(200, json.dumps({"url": f"http://127.0.0.1/{name}"}).encode())
            elif words == ["api", "validate-yaml"]:
                self.answer(200, json.dumps({"errors": [], "warnings": []}).encode())
            elif words[4:5] == ["preupload"]:
                names = [file["path"] for file in json.loads(body)["files"]]
                files = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
                self.answer(200, json.dumps({"files": files}).encode())
            elif words[4:5] == ["commit"]:
                for line in body.decode().splitlines():
                    item = json.loads(line)
                    if item["key"] == "file":
                        repositories[repository][item["value"]["path"]] = b64decode(item["value"]["content"])
                found = {"commitUrl": f"http://127.0.0.1/{repository}/commit/{COMMIT}", "commitOid": COMMIT}
                self.answer(200, json.dumps({**found, "pullRequestUrl": None}).encode())
            else:
                self.answer(404)

    with serving(Handler) as address:
        yield address
