"""Owns the hostile moments: nothing is lost, and only what may come again does (lib/ledger.py says how it is proved).

Every random moment comes from the seed of the run, the broker and the case's name.
"""
import threading
import time
from contextlib import contextmanager

from lib.cases import case
from lib.ledger import Ledger, Worker
from lib.process import Failure, Hopeless, check, check_equal, eventually
from lib.resp import ReplyError, record
from lib.servers import KAFKA

MESSAGES, PARTITIONS = 50_000, 4
PACE = 2_000            # messages per second and connection, where a fault should find old acks and new ones
COMMIT_INTERVAL = 1.0   # auto.commit.interval.ms, karrow's default
GRACE = 0.5             # for the commit itself to reach the broker, on a busy machine
# Dead members are noticed by their silence: the default of 45 s would only make the tests longer.
SESSION = '"session.timeout.ms":6000,"heartbeat.interval.ms":500'
EARLIEST = "{" + SESSION + "}"
LATEST = '{"auto.offset.reset":"latest",' + SESSION + "}"
TAKEN = "CONS id "          # the old connection of this name is still being closed
NOT_OURS = "CONS "           # an ack for a partition that has gone to another member
SHUTDOWN = "CONS Server shutdown"


class Scene:
    """Two connections that consume a topic of four partitions, through a karrow that the case may hurt."""

    def __init__(self, context, karrow, broker=None, start="earliest"):
        self.context, self.karrow = context, karrow
        self.client = (broker or karrow).kafka_client()
        self.topic, self.group = context.unique("loss"), context.unique("group")
        self.client.create_topic(self.topic, PARTITIONS)
        self.ledger, self.workers = Ledger(self.topic, PARTITIONS, start), []

    def values(self, count, prefix=b"m"):
        return [prefix + b"-%06d" % number for number in range(count)]

    def produce(self, count=MESSAGES, prefix=b"m"):
        self.ledger.produced(self.client.produce(self.topic, self.values(count, prefix), PARTITIONS))

    def worker(self, name, **settings):
        settings.setdefault("options", EARLIEST)
        settings.setdefault("tolerate_acks", (NOT_OURS,))  # each fault is a rebalance for the other connection
        worker = Worker(self.ledger, self.karrow.port, self.group, name, self.context.random.random(), **settings)
        self.workers.append(worker)
        worker.start()
        return worker

    def moments(self, count, start=0.02, end=0.9):
        """Random points of progress, as numbers of processed messages."""
        return sorted(int(self.context.random.uniform(start, end) * MESSAGES) for _ in range(count))

    def reach(self, processed, seconds=120):
        self.ledger.wait_for(processed, seconds, self.workers)

    def finish(self, seconds=180):
        eventually(self._all_processed, "every message is processed", seconds, every=0.1)
        for worker in self.workers:
            worker.leave()
        self.fail_if_worker_failed()
        summary = self.ledger.conclude()
        print(f"        {summary}; "
              f"connections: {', '.join(str(worker.connections) for worker in self.workers)}; {self.tolerated()}", flush=True)

    def tolerated(self):
        together = {}
        for worker in self.workers:
            for text, count in worker.tolerated.items():
                together[text] = together.get(text, 0) + count
        return "errors: " + (", ".join(f"{count}× {text}" for text, count in together.items()) or "none")

    def fail_if_worker_failed(self):
        failures = [worker.failure for worker in self.workers if worker.failure]
        check(not failures, "; ".join(failures))

    def _all_processed(self):
        failures = [worker.failure for worker in self.workers if worker.failure] + self.ledger.wrong
        if failures:
            raise Hopeless("; ".join(failures[:3]))
        missing = self.ledger.missing()
        if missing:
            raise Failure(f"{len(missing)} are missing, for example {sorted(missing)[:3]}; "
                          + "; ".join(worker.state() for worker in self.workers))
        return True

    def end(self):
        for worker in self.workers:
            worker.ending.set()
        for worker in self.workers:
            worker.join(5)


@contextmanager
def scene(*arguments, **settings):
    play = Scene(*arguments, **settings)
    try:
        yield play
    finally:
        play.end()


def kill_and_start(play):
    """kill -9 and a new start; acks of the last commit interval may be forgotten."""
    # Answers that were under way when it died are read a moment later.
    with play.ledger.may_come_again(before=COMMIT_INTERVAL + GRACE, after=GRACE):
        play.karrow.kill()
    play.karrow.start()


@case("loss", "kill-9-earliest")
def kill_9_earliest(context):
    """kill -9 of karrow at six random moments."""
    with scene(context, context.new_karrow().start()) as play:
        play.produce()
        for name in ("a", "b"):
            play.worker(name, tolerate=(TAKEN,), pace=PACE)
        for moment in play.moments(6):
            play.reach(moment)
            kill_and_start(play)
        play.finish()


@case("loss", "kill-9-latest")
def kill_9_latest(context):
    """With `latest`: the start is a committed number before anything is delivered, so a kill loses nothing."""
    with scene(context, context.new_karrow().start(), start="latest") as play:
        play.client.produce(play.topic, play.values(1000, b"old"), PARTITIONS)
        acks_allowed = threading.Event()
        for name in ("a", "b"):
            play.worker(name, options=LATEST, tolerate=(TAKEN,), pace=PACE, ack_gate=acks_allowed.is_set)
        probes = iter(range(10**6))

        def all_positions_are_committed():
            play.produce(PARTITIONS, b"probe-%d" % next(probes))
            play.fail_if_worker_failed()
            found = play.client.committed(play.group, play.topic, PARTITIONS)
            return found if len(found) == PARTITIONS else None
        start = eventually(all_positions_are_committed, "the resolved `latest` of each partition is committed", 60, 0.5)
        check(all(offset >= 250 for offset in start.values()), f"`latest` was resolved to {start}, the old end is 250")
        play.ledger.begin_at(start)
        eventually(lambda: play.ledger.deliveries > 0, "a first message is delivered", 30)
        check_equal(play.client.committed(play.group, play.topic, PARTITIONS), start, "committed without an ack")
        kill_and_start(play)  # what was delivered is not acked: it must come again
        acks_allowed.set()
        play.produce()
        for moment in play.moments(5):
            play.reach(moment)
            kill_and_start(play)
        play.finish()


@case("loss", "sigterm")
def sigterm(context):
    """SIGTERM at random moments: exit code 0, and not one accepted ack is forgotten."""
    with scene(context, context.new_karrow().start()) as play:
        play.produce()
        for name in ("a", "b"):
            play.worker(name, tolerate=(TAKEN, SHUTDOWN))
        for moment in play.moments(5):
            play.reach(moment)
            check_equal(play.karrow.stop(), 0, "exit code after SIGTERM")
            play.karrow.start()
        play.finish()


@case("loss", "connections-cut")
def connections_cut(context):
    """Client connections die at random: behind a pop, between reply and ack, behind an ack. Only unacked come again."""
    with scene(context, context.new_karrow().start()) as play:
        play.produce()
        for name in ("a", "b"):
            play.worker(name, cuts=0.0004, tolerate=(TAKEN,))
        play.finish(300)
        cut = [worker.cut for worker in play.workers]
        check(sum(cut) >= 4, f"the test cut only {cut} connections")


@case("loss", "rebalances")
def rebalances(context):
    """A third member joins and leaves every two seconds, while messages keep coming."""
    members_come_and_go(context, EARLIEST)


@case("loss", "rebalances-cooperative")
def rebalances_cooperative(context):
    """The same, but partitions that stay are not taken away."""
    # The embedded broker's coordinator loses sight of members during such rebalances: it refuses their commits, and
    # gives their partitions to others after the session timeout. That is a lost assignment, whose acks may be lost.
    lapse = 0 if context.kind == KAFKA else 6 + COMMIT_INTERVAL + GRACE
    options = EARLIEST[:-1] + ',"partition.assignment.strategy":"cooperative-sticky"}'
    members_come_and_go(context, options, MESSAGES // 2, lapse=lapse)


@case("loss", "rebalances-kip-848", brokers=(KAFKA,))
def rebalances_kip_848(context):
    """The same with the group protocol of Kafka 4, which the embedded broker does not have."""
    members_come_and_go(context, '{"group.protocol":"consumer"}', stay=6)  # its heartbeats are 5 s apart


def members_come_and_go(context, options, messages=MESSAGES, stay=2, lapse=0):
    if context.kind != KAFKA:
        stay = 6  # the embedded broker takes longer to let a member in
    with scene(context, context.new_karrow().start()) as play:
        play.ledger.lapse = lapse
        for name in ("a", "b"):
            play.worker(name, options=options, tolerate=(TAKEN,))
        done, part_size = threading.Event(), 500

        def produce_for_a_while():
            for part in range(messages // part_size):
                play.produce(part_size, b"part-%d" % part)
                if done.wait(0.25):
                    return
        producing = threading.Thread(target=produce_for_a_while, daemon=True)
        producing.start()
        guests = []
        try:
            while producing.is_alive():
                guest = play.worker(f"guest-{len(guests)}", options=options, tolerate=(TAKEN,))
                guests.append(guest)
                producing.join(stay)
                guest.leave()
                play.fail_if_worker_failed()
                producing.join(stay)
        finally:
            done.set()
            producing.join(60)
        received = [guest.received for guest in guests]
        check(sum(1 for count in received if count) >= 2, f"messages that the third member got at each visit: {received}")
        check_equal(len(play.ledger.value_at), messages, "messages produced")
        play.finish()


@case("loss", "kept-partitions")
def kept_partitions(context):
    """A second member joins and leaves, three times, when the first has reached the end of everything: partitions
    that it keeps go on."""
    a_member_joins_at_the_end(context, "{}")


@case("loss", "kept-partitions-cooperative")
def kept_partitions_cooperative(context):
    a_member_joins_at_the_end(context, '{"partition.assignment.strategy":"cooperative-sticky"}')


@case("loss", "kept-partitions-kip-848", brokers=(KAFKA,))
def kept_partitions_kip_848(context):
    a_member_joins_at_the_end(context, '{"group.protocol":"consumer"}')


def a_member_joins_at_the_end(context, options):
    karrow, topic, group = context.karrow, context.topic("kept", PARTITIONS), context.unique("group")
    client, key, seen = karrow.kafka_client(), f"topics:{topic}:{options}", {}

    def take(redis, who):
        """Pops and acks one message, which must be the next one of its partition."""
        reply = redis.call("BLPOP", key, "0.2")
        if not reply:
            return False
        _, partition, offset, _ = record(reply)
        check_equal(offset, seen.get(partition, 0), f"offset that {who} got of partition {partition}")
        seen[partition] = offset + 1
        check_equal(redis.call("RPUSH", "acks", f"{topic}:{partition}:{offset}"), 1, f"ack of {who}")
        return True

    client.produce(topic, [b"first-%d" % number for number in range(40)], PARTITIONS)
    rounds = iter(range(10**6))

    def one_round(*members):
        """One more message for each partition; returns how many the last member got."""
        number, got = next(rounds), 0
        client.produce(topic, [b"round-%d-%d" % (number, partition) for partition in range(PARTITIONS)], PARTITIONS)
        want, deadline = 40 + (number + 1) * PARTITIONS, time.monotonic() + 20
        while sum(seen.values()) < want:
            check(time.monotonic() < deadline, f"{want - sum(seen.values())} of {want} messages never came: {seen}")
            for member in members:
                got += take(*member) and member is members[-1]
        return got

    with karrow.connect(f"{group}:a") as first:
        eventually(lambda: take(first, "a") and sum(seen.values()) == 40, "a has everything", 30, every=0)
        for visit in range(3):
            check(not first.call("LPOP", key), "the end of every partition is reached")
            with karrow.connect(f"{group}:b{visit}") as second:
                got, deadline = 0, time.monotonic() + 30
                while got < 4:
                    check(time.monotonic() < deadline, "the second member never got a partition")
                    got += one_round((first, "a"), (second, f"b{visit}"))
            one_round((first, "a"))


@case("loss", "broker-restarted")
def broker_restarted(context):
    """The broker ends (SIGTERM, then kill -9) and starts again while both connections consume."""
    if context.kind == KAFKA:
        kafka = context.new_kafka().start()
        broker, karrow = None, context.new_karrow(bootstrap=kafka.bootstrap).start()
        hurt = kafka
    else:
        broker = hurt = context.new_karrow(label="broker").start()
        karrow = context.new_karrow(kind=KAFKA, bootstrap=broker.bootstrap).start()
    with scene(context, karrow, broker) as play:
        play.produce()
        for name in ("a", "b"):
            # The default session timeout (45 s): the members outlive the broker's absence.
            play.worker(name, options="", tolerate=(TAKEN, "CONS Poll"), pace=PACE)
        for moment, stop in zip(play.moments(2, 0.1, 0.6), (hurt.stop, hurt.kill)):
            play.reach(moment)
            # Acks go on while the broker is away; they are committed when it is back, unless the group was lost.
            with play.ledger.may_come_again(COMMIT_INTERVAL + GRACE, COMMIT_INTERVAL + GRACE):
                stop()
                hurt.start()
        play.finish(240)


def pop(redis, topic):
    """The next message as (partition, offset, value)."""
    reply = redis.call("BLPOP", f"topics:{topic}:{EARLIEST}", "20", seconds=30)
    check(reply, f"no message of {topic} within 20 s")
    return record(reply)[1:]


@case("loss", "sigterm-while-blocked")
def sigterm_while_blocked(context):
    """SIGTERM during a blocked BLPOP: it answers `CONS Server shutdown`, exit code 0, the acked offset is committed."""
    karrow = context.new_karrow().start()
    client, topic, group = karrow.kafka_client(), context.unique("blocked"), context.unique("group")
    client.create_topic(topic, 1)
    client.produce(topic, [b"m%d" % number for number in range(5)], 1)
    with karrow.connect(f"{group}:one") as redis:
        for _ in range(5):
            pop(redis, topic)
        check_equal(redis.call("RPUSH", "acks", f"{topic}:0:2"), 1, "ack")
        redis.send("BLPOP", f"topics:{topic}", "0")
        # That it blocks is a fact that another connection can see.
        with karrow.connect() as other:
            eventually(lambda: b"cmd=blpop" in other.call("CLIENT", "LIST"), "CLIENT LIST shows the blocked pop")
        code = karrow.stop()
        reply = redis.read()
        check(isinstance(reply, ReplyError) and str(reply) == SHUTDOWN, f"the blocked BLPOP was answered {reply!r}")
        check(redis.closed_by_server(), "the connection stays open")
        check_equal(code, 0, "exit code")
    if context.kind != KAFKA:
        karrow.start()  # the broker is back with it
    check_equal(client.committed(group, topic, 1), {0: 3}, "committed offsets")


@case("loss", "restart-by-sigterm")
def restart_by_sigterm(context):
    """After a restart unacked messages come again, acked ones do not; the embedded broker has kept its data."""
    restart(context, lambda karrow: check_equal(karrow.stop(), 0, "exit code"))


@case("loss", "restart-by-kill-9")
def restart_by_kill(context):
    """The same with kill -9, once the ack is committed."""
    restart(context, lambda karrow: karrow.kill())


def restart(context, end):
    karrow = context.new_karrow().start()
    topic, group = context.unique("restart"), context.unique("group")
    client = karrow.kafka_client()
    client.create_topic(topic, 1)
    with karrow.connect(f"{group}:one") as redis:
        check_equal(redis.call("RPUSH", f"topics:{topic}", *[f"m{number}" for number in range(6)]), 6, "RPUSH")
        got = [pop(redis, topic) for _ in range(5)]
        check_equal(got, [(0, number, b"m%d" % number) for number in range(5)], "before the restart")
        check_equal(redis.call("RPUSH", "acks", f"{topic}:0:1"), 1, "ack")
        eventually(lambda: client.committed(group, topic, 1) == {0: 2}, "the ack is committed", 5)
        end(karrow)
    karrow.start()
    with karrow.connect(f"{group}:one") as redis:
        got = [pop(redis, topic) for _ in range(4)]
        check_equal(got, [(0, number, b"m%d" % number) for number in range(2, 6)], "after the restart")
        check_equal(redis.call("RPUSH", f"topics:{topic}", "m6"), 1, "RPUSH after the restart")
        check_equal(pop(redis, topic), (0, 6, b"m6"), "a new message")
