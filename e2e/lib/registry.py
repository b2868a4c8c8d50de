"""Owns the schema registry of the tests: Apicurio Registry, which speaks Confluent's API, and what it lacks.

It keeps its schemas in a file, so that it can be stopped and started again with the same ids.
"""
import http.client
import json
import threading
import urllib.request
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from . import install
from .process import Server, free_port

API = "/apis/ccompat/v7"


class SchemaRegistry:
    """Apicurio Registry on a free port of 127.0.0.1."""

    def __init__(self, folder):
        self.folder, self.port = folder, free_port()
        self.url = f"http://127.0.0.1:{self.port}{API}"
        self.jar = install.schema_registry()
        install.program("java", "install a JDK 17 or newer (Debian package openjdk-17-jdk-headless)")
        self.server = None
        folder.mkdir(parents=True)

    def start(self):
        self.server = Server("the schema registry", [
            "java", "-Xmx300m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1",
            "-Dquarkus.http.host=127.0.0.1", f"-Dquarkus.http.port={self.port}",
            f"-Dquarkus.datasource.jdbc.url=jdbc:h2:file:{self.folder / 'schemas'}", "-jar", self.jar],
            self.folder / "registry.log")
        self.server.wait_until(self._answers, "it answers", 120)
        return self

    def _answers(self):
        with urllib.request.urlopen(f"{self.url}/subjects", timeout=5) as answer:
            return answer.status == 200

    def stop(self):
        self.server.stop()

    def client(self):
        """The client of Confluent's library for Python."""
        return registry_client(self.url)


def registry_client(url):
    install.python_packages("arrow")
    from confluent_kafka.schema_registry import SchemaRegistryClient
    return SchemaRegistryClient({"url": url})


class Quiet(ThreadingHTTPServer):
    """Says nothing of clients that did not wait for their answer."""

    def handle_error(self, *_):
        pass


class RegistryProxy:
    """Passes everything on to a registry, gives schemas the GUIDs that newer registries of Confluent's give them, and
    takes its time if told to: `delay` are the seconds before each answer."""

    NAMES = uuid.UUID("9a9b1c5e-0b0d-4a3e-8d4b-6b6172726f77")

    def __init__(self, registry, delay=0):
        ids, self.stopped = {}, threading.Event()
        stopped = self.stopped

        def guid(number):
            name = str(uuid.uuid5(self.NAMES, str(number)))
            ids[name] = number
            return name

        class Handler(BaseHTTPRequestHandler):
            def pass_on(self):
                path = self.path
                head, _, name = path.partition("?")[0].rpartition("/")
                if head.endswith("/schemas/guids"):
                    path = f"{head.removesuffix('guids')}ids/{ids.get(name, 0)}"
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                upstream = http.client.HTTPConnection("127.0.0.1", registry.port, timeout=30)
                upstream.request(self.command, path, body or None, {"Content-Type": "application/json"})
                answer = upstream.getresponse()
                text = answer.read()
                upstream.close()
                stopped.wait(delay)
                if answer.status == 200:
                    found = json.loads(text)
                    if isinstance(found, dict) and "id" in found:
                        text = json.dumps({**found, "guid": guid(found["id"])}).encode()
                self.send_response(answer.status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            do_GET = do_POST = do_PUT = do_DELETE = pass_on

            def log_message(self, *_):
                pass

        self.server = Quiet(("127.0.0.1", free_port()), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}{API}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self):
        self.stopped.set()
        self.server.shutdown()
        self.server.server_close()
