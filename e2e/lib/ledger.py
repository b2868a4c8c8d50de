"""Owns the proof that nothing is lost: a ledger of every message, and consumers that write down what they see.

A consumer counts a message as processed when it sends the ack that covers it. What it had received and not yet
acked when its connection died is forgotten, as a crashed program forgets it. So at the end every message is
processed exactly when karrow delivered again all that was unacked. Beside that, at every single delivery:

* the value is the one that the broker has at this partition and offset;
* no message of the partition is skipped: its offset is at most the first one that was never delivered;
* a message whose ack karrow has accepted does not come again, except where `may_come_again` allows it
  (kill -9 within the commit interval) or `lapse` does (a broker that gives a member up while it lives).
"""
import math
import random
import re
import threading
import time
from contextlib import contextmanager

from .process import Failure, check
from .resp import Disconnected, Redis, ReplyError, record


class Ledger:
    def __init__(self, topic, partitions, start="earliest"):
        self.topic, self.partitions = topic, partitions
        self.lock = threading.Lock()
        self.changed = threading.Condition(self.lock)
        self.value_at = {}          # (partition, offset) -> value, as the broker acknowledged it
        self.first = {partition: 0 for partition in range(partitions)}
        # The first offset never delivered; unknown at the beginning of `latest`.
        self.frontier = {partition: 0 if start == "earliest" else None for partition in range(partitions)}
        self.processed, self.accepted = set(), {}  # accepted: (partition, offset) -> when the ack's answer came
        self.deliveries = self.redelivered_unacked = self.redelivered_acked = 0
        self.lapse = 0.0            # an ack may be forgotten for so many seconds: its member was given up unheard
        self.faults = []            # times (from, to): acks accepted in between may have been forgotten
        self.wrong = []

    def produced(self, where):
        with self.lock:
            self.value_at.update({place: value for value, place in where.items()})

    def begin_at(self, offsets):
        """Where the group starts, for `latest`: what lies before is not ours."""
        with self.lock:
            self.first.update(offsets)

    @contextmanager
    def may_come_again(self, before, after):
        """Acks may be forgotten that are accepted while the body runs, or so many seconds before or after it."""
        fault = [time.monotonic() - before, math.inf]
        with self.lock:
            self.faults.append(fault)
        try:
            yield
        finally:
            fault[1] = time.monotonic() + after

    def _complain(self, text):
        if len(self.wrong) < 20:
            self.wrong.append(text)

    def delivered(self, place, value, who):
        partition, offset = place
        with self.lock:
            self.deliveries += 1
            known = self.value_at.get(place)
            if known is not None and known != value:
                self._complain(f"{who} got {value!r} at {place}, the broker has {known!r}")
            frontier = self.frontier[partition]
            if frontier is None:
                frontier = offset
            if offset > frontier:
                self._complain(f"{who} got offset {offset} of partition {partition}, "
                               f"but {frontier} was never delivered")
            if place in self.accepted:
                self.redelivered_acked += 1
                when = self.accepted[place]
                forgivable = time.monotonic() - when <= self.lapse
                if not forgivable and not any(start <= when <= end for start, end in self.faults):
                    nearest = min((abs(when - start) for start, _ in self.faults), default=None)
                    near = "" if nearest is None else f", {nearest:.2f} s from the nearest window of grace"
                    self._complain(f"{who} got {place} again, although its ack was accepted"
                                   f" {time.monotonic() - when:.2f} s before{near}")
            elif offset < frontier:
                self.redelivered_unacked += 1
            self.frontier[partition] = max(frontier, offset + 1)

    def ack_sent(self, places):
        with self.changed:
            self.processed.update(places)
            self.changed.notify_all()

    def ack_refused(self, places):
        """karrow took nothing: what was not accepted on another way has to come again."""
        with self.lock:
            self.processed.difference_update(place for place in places if place not in self.accepted)

    def ack_accepted(self, places):
        now = time.monotonic()
        with self.lock:
            self.processed.update(places)
            for place in places:
                self.accepted.setdefault(place, now)

    def missing(self):
        with self.lock:
            return [place for place in self.value_at
                    if place[1] >= self.first[place[0]] and place not in self.processed]

    def progress(self):
        with self.lock:
            return len(self.processed)

    def wait_for(self, count, seconds, workers):
        """Waits until `count` messages are processed; gives up early when a worker has ended by a failure."""
        deadline = time.monotonic() + seconds
        with self.changed:
            while len(self.processed) < count:
                dead = [worker.failure for worker in workers if worker.failure]
                if dead or self.wrong:
                    raise Failure("; ".join([*dead, *self.wrong][:3]))
                if not self.changed.wait(min(0.5, max(0.0, deadline - time.monotonic()))) \
                        and time.monotonic() >= deadline:
                    raise Failure(f"only {len(self.processed)} of {count} messages processed after {seconds} s; "
                                  + "; ".join(worker.state() for worker in workers))

    def conclude(self):
        """The final judgement; returns a summary line."""
        missing = self.missing()
        if missing:
            raise Failure(f"{len(missing)} messages were lost, for example {sorted(missing)[:5]}")
        if self.wrong:
            raise Failure(f"{len(self.wrong)} wrong deliveries: " + "; ".join(self.wrong[:3]))
        early = [place for place in self.accepted if place[1] < self.first[place[0]]]
        check(not early, f"messages from before `latest` were delivered: {sorted(early)[:5]}")
        return (f"{len(self.processed)} messages in {self.deliveries} deliveries, again: "
                f"{self.redelivered_unacked} unacked, {self.redelivered_acked} acked")


class Worker(threading.Thread):
    """A consumer that pops, acks now and then, reconnects under its name, and dies as often as it is told to."""

    def __init__(self, ledger, port, group, name, seed, options="", cuts=0.0, tolerate=(),
                 tolerate_acks=(), ack_gate=None, pace=None):
        super().__init__(daemon=True)
        self.ledger, self.port, self.id = ledger, port, f"{group}:{name}"
        self.key = f"topics:{ledger.topic}" + (f":{options}" if options else "")
        self.random, self.cuts = random.Random(f"{seed}/{name}"), cuts
        self.tolerate, self.tolerate_acks = tuple(tolerate), (*tolerate, *tolerate_acks)
        self.ack_gate = ack_gate or (lambda: True)
        self.pace, self.due = pace, 0.0  # messages per second at most, so that a fault finds old acks and new ones
        self.ending, self.failure = threading.Event(), None
        self.connections = self.received = self.cut = 0
        self.tolerated = {}
        self.pending, self.redis, self.doing = {}, None, "not started"

    def state(self):
        return f"{self.id}: {self.doing}, {self.connections} connections, tolerated {self.tolerated}"

    def run(self):
        try:
            while not self.ending.is_set():
                try:
                    self._one_connection()
                except (OSError, Disconnected):
                    self.doing = "connection lost"
                    self.ending.wait(0.05)
                except ReplyError as error:
                    self._tolerate(error, self.tolerate)
                    self.ending.wait(0.05)
        except Exception as error:  # what a worker must not meet ends the case
            self.failure = f"{self.id} after {self.connections} connections: {type(error).__name__}: {error}"

    def _tolerate(self, error, allowed):
        text = str(error)
        if not text.startswith(allowed):
            raise Failure(f"unexpected error reply: {text}")
        alike = re.sub(r"\d+", "#", text.replace(self.id, "<name>"))  # one line for all of a kind
        self.tolerated[alike] = self.tolerated.get(alike, 0) + 1

    def _one_connection(self):
        self.doing = "connecting"
        self.redis = redis = Redis(self.port, seconds=60)
        try:
            redis.call("CLIENT", "SETNAME", self.id)
            self.connections += 1
            self.pending = {}  # partition -> offsets received and not yet acked on this connection
            while not self.ending.is_set():
                self.doing = "popping"
                redis.send("BLPOP", self.key, "1")
                self._maybe_cut(redis)
                reply = redis.read()
                if isinstance(reply, ReplyError):
                    self._tolerate(reply, self.tolerate)
                    if "shutdown" in str(reply):
                        return
                    continue
                if not reply:
                    self._ack(redis, list(self.pending))
                    continue
                _, partition, offset, value = record(reply)
                self.received += 1
                self.ledger.delivered((partition, offset), value, self.id)
                offsets = self.pending.setdefault(partition, [])
                if offsets and offset != offsets[-1] + 1:  # the partition was away: what is not acked is not ours
                    offsets.clear()
                offsets.append(offset)
                self._maybe_cut(redis)
                if self.random.random() < 0.1:
                    self._ack(redis, [partition])
                if self.pace:
                    self._keep_pace()
        finally:
            redis.close()

    def _keep_pace(self):
        now = time.monotonic()
        self.due = max(self.due, now - 0.02) + 1 / self.pace
        if self.due > now + 0.005:
            self.ending.wait(self.due - now)

    def _ack(self, redis, partitions):
        for partition in partitions:
            offsets = self.pending.get(partition)
            if not offsets or not self.ack_gate():
                continue
            self.doing = "acking"
            places = [(partition, offset) for offset in offsets]
            self.ledger.ack_sent(places)
            redis.send("RPUSH", "acks", f"{self.ledger.topic}:{partition}:{offsets[-1]}")
            self._maybe_cut(redis)
            reply = redis.read()
            self.pending[partition] = []
            if isinstance(reply, ReplyError):
                self._tolerate(reply, self.tolerate_acks)
                self.ledger.ack_refused(places)
            else:
                check(reply in (0, 1), f"{self.id}: an ack was answered with {reply!r}")
                self.ledger.ack_accepted(places)

    def _maybe_cut(self, redis):
        """The connection dies: behind a command, between reply and ack, behind an ack; by a reset or an end."""
        if self.cuts and self.random.random() < self.cuts:
            self.cut += 1
            if self.random.random() < 0.5:
                redis.cut()
            else:
                redis.close()
            raise Disconnected("cut by the test")

    def leave(self, seconds=30):
        self.ending.set()
        self.join(seconds)
        check(not self.is_alive(), f"{self.id} did not end within {seconds} s: {self.doing}")
