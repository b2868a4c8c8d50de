"""Owns `karrow topics`, what the commands that look say, and the HTTP page of a running server."""
from lib.cases import case
from lib.process import Failure, check, check_equal, eventually, run
from lib.servers import environment


def topics(karrow, *arguments):
    return run([karrow.binary, "topics", *arguments, "--brokers", karrow.bootstrap], "karrow topics",
               env=environment(), cwd=karrow.folder, seconds=60)


@case("topics", "create-list-delete")
def create_list_delete(context):
    """By hand, on any Kafka; the broker's own client sees the same."""
    karrow, topic = context.karrow, context.unique("by-hand")
    client = karrow.kafka_client()
    topics(karrow, "create", topic, "--partitions", "3")
    eventually(lambda: client.partitions(topic) == 3, "three partitions")
    check(topic in topics(karrow, "list"), "karrow topics list names it")
    try:
        topics(karrow, "create", topic, "--partitions", "3")
    except Failure as refused:
        check(topic in str(refused), f"creating it twice does not name it: {refused}")
    else:
        raise Failure("creating a topic twice was no error")
    topics(karrow, "delete", topic)
    eventually(lambda: client.partitions(topic) == 0, "it is gone")


@case("topics", "first-produce-creates", brokers=("embedded",))
def first_produce_creates(context):
    """The embedded broker creates a topic that is produced to through karrow."""
    topic = context.unique("first")
    with context.karrow.connect() as redis:
        check_equal(redis.call("EXISTS", f"topics:{topic}"), 0, "EXISTS before")
        check_equal(redis.call("RPUSHX", f"topics:{topic}", "m0"), 1, "RPUSHX")
        check_equal(redis.call("DUMP", "5000"), 0, "DUMP")
        check_equal(redis.call("EXISTS", f"topics:{topic}"), 1, "EXISTS after")
        check_equal(redis.call("LLEN", f"topics:{topic}"), 1, "LLEN")


@case("topics", "looking")
def looking(context):
    """KEYS, SCAN, EXISTS, TYPE, LLEN agree with what the broker has."""
    topic = context.topic("looking", partitions=2)
    client = context.karrow.kafka_client()
    client.produce(topic, [b"%d" % number for number in range(7)], 2)
    key = f"topics:{topic}"
    with context.karrow.connect() as redis:
        check_equal(redis.call("LLEN", key), 7, "LLEN")
        check_equal(redis.call("EXISTS", key), 1, "EXISTS")
        check_equal(redis.call("EXISTS", "topics:no-such-topic"), 0, "EXISTS of nothing")
        check(key.encode() in redis.call("KEYS", "topics:"), "KEYS topics:")
        check_equal(redis.call("KEYS", f"topics:{topic[:-1]}?"), [key.encode()], "KEYS with a pattern")
        check(redis.call("TYPE", key) != "none", "TYPE")
        check_equal(redis.call("TYPE", "topics:no-such-topic"), "none", "TYPE of nothing")
        cursor, found = b"0", []
        while True:
            cursor, some = redis.call("SCAN", cursor, "MATCH", f"{key}*")
            found += some
            if cursor == b"0":
                break
        check_equal(found, [key.encode()], "SCAN")


@case("topics", "http")
def http(context):
    """/livez, /readyz and /metrics; a message that was popped and acked moves its counters."""
    karrow, topic = context.karrow, context.topic("http")
    check(karrow.http("/livez") is not None and karrow.http("/readyz") is not None, "health")

    def total(text):
        return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if not line.startswith("#"))
    before = karrow.http("/metrics")
    check("karrow_" in before, f"/metrics has nothing of karrow: {before[:200]!r}")
    with karrow.connect(f"{context.unique('group')}:one") as redis:
        redis.call("RPUSH", f"topics:{topic}", "m0")
        check(redis.call("BLPOP", f"topics:{topic}", "20"), "a message")
        check_equal(redis.call("RPUSH", "acks", "last"), 1, "ack")
        eventually(lambda: total(karrow.http("/metrics")) > total(before), "the metrics move", 5)
