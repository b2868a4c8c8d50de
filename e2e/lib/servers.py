"""Owns the servers under test: a real Apache Kafka (one KRaft node), karrow on its embedded broker, karrow on Kafka.

Both kinds of broker look alike to a case: `Karrow` with a port for Redis clients and a bootstrap address for
ordinary Kafka clients. Each listens on 127.0.0.1 on a free port, keeps its files in a folder of this run, and
can be killed and started again with the same ports and files.
"""
import json
import os
import subprocess
import urllib.request

from . import install
from .kafka_client import KafkaClient
from .process import Failure, Server, check, eventually, free_port, run
from .resp import Redis

EMBEDDED, KAFKA = "embedded", "kafka"


class ApacheKafka:
    """Apache Kafka 4.3.1, broker and controller in one process."""

    def __init__(self, folder):
        self.folder = folder
        self.port = free_port(2)
        self.bootstrap = f"127.0.0.1:{self.port}"
        self.jars = install.maven_jars(install.E2E / "kafka" / "pom.xml")
        self.server = None
        folder.mkdir(parents=True)
        self.properties = folder / "server.properties"
        self.properties.write_text("\n".join([
            "process.roles=broker,controller", "node.id=1",
            f"listeners=PLAINTEXT://127.0.0.1:{self.port},CONTROLLER://127.0.0.1:{self.port + 1}",
            f"advertised.listeners=PLAINTEXT://127.0.0.1:{self.port}",
            "listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "controller.listener.names=CONTROLLER", "inter.broker.listener.name=PLAINTEXT",
            f"controller.quorum.bootstrap.servers=127.0.0.1:{self.port + 1}",
            f"log.dirs={folder / 'data'}",
            "offsets.topic.replication.factor=1", "offsets.topic.num.partitions=4",
            "transaction.state.log.replication.factor=1", "transaction.state.log.min.isr=1",
            "share.coordinator.state.topic.replication.factor=1", "share.coordinator.state.topic.min.isr=1",
            "min.insync.replicas=1", "default.replication.factor=1", "num.partitions=1",
            "group.initial.rebalance.delay.ms=0", "group.min.session.timeout.ms=1000",
            # Old timestamps are no reason to delete what a case has just written; compaction comes soon.
            "log.retention.ms=-1", "log.cleaner.backoff.ms=500",
            "auto.create.topics.enable=false", ""]))
        run([*self._java("-Xmx128m"), "kafka.tools.StorageTool", "format", "-t", "a2Fycm93LWUyZS10ZXN0cw",
             "-c", self.properties, "--standalone"], "formatting Kafka's storage")

    def _java(self, *options):
        return ["java", *options, "-XX:+UseSerialGC",
                f"-Dlog4j2.configurationFile={install.E2E / 'kafka' / 'log4j2.xml'}", "-cp", f"{self.jars}/*"]

    def start(self):
        self.server = Server("Apache Kafka", [
            *self._java("-Xms128m", "-Xmx512m", "-XX:MaxDirectMemorySize=128m"), "kafka.Kafka", self.properties],
            self.folder / "kafka.log")
        self.server.wait_until(lambda: "Kafka Server started" in self.server.log(), "its ready line", 60)
        return self

    def stop(self):
        self.server.stop()

    def kill(self):
        self.server.kill()


class Karrow:
    """One karrow process and how to start it again."""

    def __init__(self, binary, folder, kind, bootstrap=None, arguments=()):
        self.binary, self.folder, self.kind, self.arguments = binary, folder, kind, list(arguments)
        folder.mkdir(parents=True, exist_ok=True)
        self.port, self.http_port = free_port(), free_port()
        self.server = None
        self.command = [binary, "serve", "--port", self.port, "--http-port", self.http_port]
        if kind == EMBEDDED:
            kafka_port = free_port()
            self.bootstrap = f"127.0.0.1:{kafka_port}"
            self.command += ["--embedded", "--data-dir", folder / "data", "--kafka-port", kafka_port]
        else:
            self.bootstrap = bootstrap
            self.command += ["--brokers", bootstrap]
        self.flight_port = free_port()
        self.command += ["--flight-port", self.flight_port]

    def start(self):
        self.server = Server(f"karrow ({self.kind})", [*self.command, *self.arguments],
                             self.folder / "karrow.log", env=environment(), cwd=self.folder)
        self.server.wait_until(self._answers, "it answers PING", 30)
        return self

    def _answers(self):
        with Redis(self.port, seconds=2) as redis:
            return redis.call("PING") == "PONG"

    def connect(self, name=None, seconds=20):
        return Redis(self.port, name, seconds)

    def stop(self):
        return self.server.stop()

    def kill(self):
        self.server.kill()

    def kafka_client(self):
        return KafkaClient(self.bootstrap)

    def http(self, path):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}{path}", timeout=5) as answer:
            return answer.read().decode()

    def create_topic(self, topic, partitions):
        """`karrow topics create`, as a user would, and then the broker's own word that it is there."""
        run([self.binary, "topics", "create", topic, "--partitions", partitions, "--brokers", self.bootstrap],
            f"karrow topics create {topic}", env=environment(), cwd=self.folder, seconds=60)
        client = self.kafka_client()
        eventually(lambda: client.partitions(topic) == partitions, f"topic {topic} has {partitions} partitions")


def environment():
    """The environment without settings of whoever runs the tests: karrow reads KARROW_…."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("KARROW_")}
    return {**kept, "RUST_BACKTRACE": "1"}


def refuses_to_start(binary, arguments, folder, seconds=20):
    """Runs `karrow serve …`, which must give up: returns (exit code, what it wrote)."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [str(part) for part in [binary, "serve", *arguments]]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              timeout=seconds, env=environment(), cwd=folder)
    except subprocess.TimeoutExpired as still:
        written = (still.stdout or b"").decode("utf-8", "replace")
        raise Failure(f"karrow serve still runs after {seconds} s instead of refusing; it wrote: {written!r}") from None
    return done.returncode, done.stdout.decode("utf-8", "replace")


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content, indent=2))
    check(path.exists(), f"{path} was not written")
    return path
