"""Owns the list of cases, their context and the report: one line a case, `N passed, N failed` at the end."""
import fnmatch
import itertools
import pathlib
import random
import shutil
import sys
import tempfile
import time
import traceback

from . import install
from .process import Failure
from .registry import SchemaRegistry
from .servers import EMBEDDED, KAFKA, ApacheKafka, Karrow

BOTH = (EMBEDDED, KAFKA)
SUITES = []  # (suite, case or None, brokers, function) in the order in which they were declared


def case(suite, name, brokers=BOTH):
    """Declares one case: a function of a Context that raises where what it asserts is not so."""
    def declare(function):
        SUITES.append((suite, name, brokers, function))
        return function
    return declare


def program(suite, brokers=BOTH):
    """Declares a function of a Context that reports several cases itself, through `context.report`."""
    return case(suite, None, brokers)


class Report:
    def __init__(self):
        self.passed, self.failed, self.started = 0, [], time.monotonic()

    def line(self, broker, suite, name, why=None, seconds=None):
        took = f"  ({seconds:.1f} s)" if seconds is not None else ""
        if why is None:
            self.passed += 1
            print(f"ok      {broker:8}  {suite:12}  {name}{took}", flush=True)
        else:
            self.failed.append((broker, suite, name))
            print(f"FAILED  {broker:8}  {suite:12}  {name}{took}: {why}", flush=True)

    def close(self):
        if self.failed:
            print("\nfailed:")
            for broker, suite, name in self.failed:
                print(f"  {broker:8}  {suite:12}  {name}")
        print(f"{self.passed} passed, {len(self.failed)} failed", flush=True)
        return 1 if self.failed or not self.passed else 0


class Run:
    """What all cases of one run share: the folder, the seed, the binary, one Kafka, one schema registry, one
    karrow of each kind."""

    def __init__(self, seed, keep):
        self.seed, self.keep = seed, keep
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="karrow-e2e-"))
        self.report, self.numbers = Report(), itertools.count(1)
        self._binary = self._kafka = self._registry = None
        self._karrows, self._could_not = {}, {}

    def _once(self, what, build):
        """Builds a shared thing once; where that failed, says so again instead of trying for every case."""
        if what in self._could_not:
            raise Failure(self._could_not[what])
        try:
            return build()
        except Failure as failure:
            self._could_not[what] = str(failure)
            raise

    def binary(self):
        if self._binary is None:
            self._binary = self._once("binary", install.karrow_binary)
        return self._binary

    def kafka(self):
        if self._kafka is None:
            self._kafka = self._once("kafka", lambda: ApacheKafka(self.folder / "kafka").start())
        return self._kafka

    def registry(self):
        if self._registry is None:
            self._registry = self._once("registry", lambda: SchemaRegistry(self.folder / "registry").start())
        return self._registry

    def shared_karrow(self, kind):
        """The karrow that cases share; started again where a case (or a crash) has ended it."""
        found = self._karrows.get(kind)
        if found is None:
            found = self._karrows[kind] = self._once(kind, lambda: self.new_karrow(kind, f"karrow-{kind}").start())
        elif found.server.process.poll() is not None:
            found.start()
        return found

    def new_karrow(self, kind, name, arguments=(), bootstrap=None):
        if kind == KAFKA and bootstrap is None:
            bootstrap = self.kafka().bootstrap
        return Karrow(self.binary(), self.folder / name, kind, bootstrap, arguments)

    def remove(self):
        if self.keep or self.report.failed:
            print(f"logs: {self.folder}")
        else:
            shutil.rmtree(self.folder, ignore_errors=True)


class Context:
    """What one case sees."""

    def __init__(self, shared, kind, suite, name):
        self.run, self.kind, self.suite, self.name = shared, kind, suite, name
        self.number = next(shared.numbers)
        self.random = random.Random(f"{shared.seed}/{kind}/{suite}/{name}")
        self._own = []

    @property
    def karrow(self):
        return self.run.shared_karrow(self.kind)

    @property
    def folder(self):
        return self.run.folder / f"case-{self.number}"

    def new_karrow(self, arguments=(), kind=None, bootstrap=None, label="karrow"):
        """A karrow of this case's own, not started yet; stopped when the case ends."""
        karrow = self.run.new_karrow(kind or self.kind, f"case-{self.number}/{label}", arguments, bootstrap)
        self._own.append(karrow)
        return karrow

    def new_kafka(self):
        """A Kafka of this case's own, for cases that restart it."""
        kafka = ApacheKafka(self.folder / "kafka")
        self._own.append(kafka)
        return kafka

    def new_registry(self):
        """A schema registry of this case's own, for cases that stop it."""
        registry = SchemaRegistry(self.folder / "registry")
        self._own.append(registry)
        return registry

    def unique(self, word):
        """A name for a topic or group that no other case of this run uses."""
        return f"{word}-{self.number}-{next(self.run.numbers)}"

    def topic(self, word="topic", partitions=None):
        """A fresh topic name. It is created where the broker does not do so by itself at the first produce, or
        where the number of partitions matters."""
        topic = self.unique(word)
        if partitions or self.kind == KAFKA:
            self.karrow.kafka_client().create_topic(topic, partitions or 1)
        return topic

    def report(self, name, why=None, seconds=None):
        self.run.report.line(self.kind, self.suite, name, why, seconds)

    def end(self):
        for owned in self._own[::-1]:
            if owned.server is not None:
                owned.stop()


def run_case(shared, kind, suite, name, function):
    context, started = Context(shared, kind, suite, name), time.monotonic()
    why = None
    try:
        function(context)
    except Failure as failure:
        why = str(failure)
    except Exception as error:  # a broken case is a failed case, with the place where it broke
        last = traceback.extract_tb(sys.exc_info()[2])[-1]
        why = f"{type(error).__name__}: {error} ({pathlib.Path(last.filename).name}:{last.lineno})"
    finally:
        context.end()
    if name is not None or why is not None:
        shared.report.line(kind, suite, name or "(whole program)", why, time.monotonic() - started)


def selected(only, brokers):
    """The cases whose suite, or `suite/name`, matches one of the patterns."""
    for kind in brokers:
        for suite, name, kinds, function in SUITES:
            full = f"{suite}/{name}" if name else suite
            if kind in kinds and (not only or any(
                    fnmatch.fnmatch(suite, pattern) or fnmatch.fnmatch(full, pattern) for pattern in only)):
                yield kind, suite, name, function
