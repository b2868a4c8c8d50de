"""Owns bad input over a raw socket: each answer is one line that names the thing, and the connection stays usable,
unless the framing is lost: then a clear text and the end of the connection.

Expectations are exact texts where the contract (rafka's or Redis's texts) has one, otherwise patterns.
"""
import json
import re
import time

from lib.cases import case
from lib.process import check, check_equal, eventually
from lib.resp import Nil, Redis, ReplyError, record

BAD = b"\xff\xfe"  # no UTF-8
NOT_READY = "CONS Connection not ready. Identify yourself using `CLIENT SETNAME` first"
FIRST_ARGUMENT = "PROD First argument must be in the form of 'topics:<topic>' or 'topics:<topic>:<key>'"


def arity(name):
    return f"ERR wrong number of arguments for '{name}' command"


def matches(pattern):
    return re.compile(pattern)


def expect_error(redis, command, want, what=None):
    """The command is answered with this error, in one line, and the connection is still good."""
    what = what or repr(command)[:120]
    redis.send(*command)
    reply = redis.read()
    check(isinstance(reply, ReplyError), f"{what}: got {reply!r} instead of an error")
    text = str(reply)
    if isinstance(want, str):
        check_equal(text, want, what)
    else:
        check(want.fullmatch(text), f"{what}: got {text!r}, want {want.pattern!r}")
    check_equal(redis.call("PING"), "PONG", f"PING after {what}")


def expect_all(redis, table):
    """All lines of the table, so that one wrong text does not hide the others."""
    wrong = []
    for command, want in table:
        try:
            expect_error(redis, command, want)
        except AssertionError as why:
            wrong.append(str(why))
    check(not wrong, "\n    " + "\n    ".join(wrong))


@case("input", "commands")
def commands(context):
    """Unknown commands and wrong numbers of arguments, in Redis's own words."""
    with context.karrow.connect() as redis:
        expect_all(redis, [
            (["NOSUCH"], matches(r"ERR unknown command `NOSUCH`, with args beginning with: ?")),
            (["nosuch", "a", "b"], matches(r"ERR unknown command `nosuch`, with args beginning with: .*a.*b.*")),
            (["SUBSCRIBE", "x"], matches(r"ERR unknown command `SUBSCRIBE`, .*")),
            ([BAD], matches(r"ERR unknown command `.*`, with args beginning with: ?")),
            (["A\r\nB"], matches(r"ERR unknown command `A.*B`, .*")),
            (["ECHO"], arity("echo")), (["ECHO", "a", "b"], arity("echo")),
            (["BLPOP", "topics:t"], arity("blpop")), (["BLPOP"], arity("blpop")), (["LPOP"], arity("lpop")),
            (["RPUSH", "topics:t"], arity("rpush")), (["RPUSHX", "topics:t"], arity("rpushx")),
            (["DUMP"], arity("dump")), (["DUMP", "word"], "PROD NaN"), (["KEYS"], arity("keys")),
            (["HGETALL"], arity("hgetall")), (["HGETALL", "other"], "ERR Expected key to be 'stats', got other"),
            (["DEL", "other"], "ERR Expected key to be 'stats', got other"),
            (["CLIENT"], arity("client")), (["CLIENT", "SETNAME"], arity("client|setname")),
            (["CLIENT", "MAINT_NOTIFICATIONS", "ON"], matches(r"ERR .*(?i:maint_notifications).*")),
            (["CLIENT", "SETNAME", "a b"], matches(r"ERR Client names cannot contain spaces, newlines or special characters\.?")),
            (["EXEC"], "ERR EXEC without MULTI"), (["DISCARD"], "ERR DISCARD without MULTI"),
            (["HELLO", "4"], "NOPROTO unsupported protocol version"),
            (["HELLO", "x"], matches(r"(ERR Protocol version is not an integer or out of range|NOPROTO .*)")),
            (["SELECT", "word"], matches(r"ERR .*")),
        ])


@case("input", "produce")
def produce(context):
    """Malformed keys and topics of RPUSH and RPUSHX; what is stored stays byte for byte."""
    topic = context.topic("bytes")
    with context.karrow.connect(f"{context.unique('group')}:one") as redis:
        expect_all(redis, [
            (["RPUSHX", "nocolon", "v"], FIRST_ARGUMENT), (["RPUSHX", "", "v"], FIRST_ARGUMENT),
            (["RPUSHX", "topics:", "v"], matches(r"PROD .+")),
            (["RPUSH", "nocolon", "v"], matches(r"(PROD First argument .*|CONS You can only RPUSH to the 'acks' key)")),
            (["RPUSH", "topics:", "v"], matches(r"PROD .+")),
            (["RPUSH", "topics:a/b", "v"], matches(r"PROD .*a/b.*")),
            (["RPUSH", b"topics:" + BAD, "v"], matches(r"PROD .+")),
            (["RPUSH", "topics:" + "x" * 300, "v"], matches(r"PROD .+")),
        ])
        key, value = BAD + b":\x00\r\n", b"\x00\r\n" + BAD + bytes(range(256))
        check_equal(redis.call("RPUSH", b"topics:" + topic.encode() + b":" + key, value, ""), 2, "RPUSH of bytes")
        check_equal(record(redis.call("BLPOP", f"topics:{topic}", "20")), (topic, 0, 0, value), "the same bytes")
        got = redis.call("BLPOP", f"json:{topic}", "20")
        message = json.loads(got[1])
        check("key_base64" in message and "key" not in message, f"a key that is no UTF-8: {message}")
        check_equal(message["value"], "", "an empty value")
        check_equal(redis.call("RPUSH", f"topic:{topic}:k", "habit"), 1, "the prefix `topic:` of rafka's users")
        check_equal(record(redis.call("BLPOP", f"topics:{topic}", "20"))[3], b"habit", "the message")


@case("input", "consume")
def consume(context):
    """Names, keys, options and timeouts of pops."""
    topic = context.topic("consume")
    with context.karrow.connect() as redis:
        expect_all(redis, [
            (["BLPOP", f"topics:{topic}", "1"], NOT_READY), (["LPOP", f"topics:{topic}"], NOT_READY),
            (["RPUSH", "acks", f"{topic}:0:0"], matches(r"CONS .+")),
        ])
        check(redis.call("CLIENT", "SETNAME", "nocolon") in ("OK", b"OK"), "a name without a colon is accepted")
        expect_all(redis, [(["BLPOP", f"topics:{topic}", "1"], "CONS Cannot parse group.id")])
        check(redis.call("CLIENT", "SETNAME", ":nogroup") in ("OK", b"OK"), "a name without a group is accepted")
        expect_all(redis, [(["BLPOP", f"topics:{topic}", "1"], matches(r"CONS .+"))])
    name = f"{context.unique('group')}:one"
    with context.karrow.connect(name) as redis:
        option = '{"bootstrap.servers":"127.0.0.1:1"}'
        expect_all(redis, [
            (["CLIENT", "SETNAME", "other:name"], f"CONS Client ID is already set to {name}"),
            (["BLPOP", "nocolon", "1"], "CONS Cannot parse topics from `nocolon`"),
            (["BLPOP", "lists:x", "1"], matches(r"CONS .*lists:x.*")),
            (["BLPOP", "topics:", "1"], "CONS Not enough topics in `topics:`"),
            (["BLPOP", "topics:a/b", "1"], matches(r"CONS .*a/b.*")),
            (["BLPOP", "topics:^regex", "1"], matches(r"CONS .*\^regex.*")),
            (["BLPOP", b"topics:" + BAD, "1"], matches(r"CONS .+")),
            (["BLPOP", f"topics:{topic}:{{bad", "1"],
             matches(r"CONS Error parsing configuration from '\{bad'; .+")),
            (["BLPOP", f"topics:{topic}:[1]", "1"], matches(r"CONS Error parsing configuration from '\[1\]'; .+")),
            (["BLPOP", f"topics:{topic}:".encode() + b'{"a":"' + BAD + b'"}', "1"], matches(r"CONS .+")),
            (["BLPOP", f"topics:{topic}:{option}", "1"],
             matches(r"CONS Failed to register Consumer.*bootstrap\.servers.*")),
            (["BLPOP", f'topics:{topic}:{{"no.such.option":1}}', "1"],
             matches(r"CONS Failed to register Consumer.*no\.such\.option.*")),
            (["BLPOP", f'topics:{topic}:{{"auto.offset.reset":"sideways"}}', "1"],
             matches(r"CONS Failed to register Consumer.*(auto\.offset\.reset|sideways).*")),
            (["BLPOP", f"topics:{topic}", "word"], "ERR timeout is not a float or out of range"),
            (["BLPOP", f"topics:{topic}", "-1"], "ERR timeout is negative"),
            (["LPOP", f"topics:{topic}", "word"], matches(r"ERR value is .*")),
            (["LPOP", f"topics:{topic}", "-1"], matches(r"ERR value is .*")),
        ])
        check(not redis.call("BLPOP", f"topics:{topic}:", "0.1"), "a trailing `:` without JSON is fine")
        expect_all(redis, [
            (["BLPOP", "topics:another", "1"],
             f"CONS Client '{name}' has Consumer '{name}|{topic}' registered (new consID: '{name}|another')"),
            (["BLPOP", f"topics:{topic},another", "1"],
             f"CONS Client '{name}' has Consumer '{name}|{topic}' registered (new consID: '{name}|{topic},another')"),
        ])
        with context.karrow.connect(name) as other:
            expect_error(other, ["BLPOP", f"topics:{topic}", "1"], f"CONS id {name} is already taken")


@case("input", "names-that-are-no-utf8")
def names(context):
    """A name that is no UTF-8 is refused when set, or when a pop needs it; never a hang, never a lost connection."""
    topic = context.topic("names")
    with context.karrow.connect() as redis:
        redis.send("CLIENT", "SETNAME", BAD + b":" + BAD)
        if not isinstance(redis.read(), ReplyError):
            expect_error(redis, ["BLPOP", f"topics:{topic}", "1"], matches(r"CONS .+"))
        check_equal(redis.call("PING"), "PONG", "PING afterwards")


@case("input", "acks")
def acks(context):
    """Malformed and impossible acks take nothing, also where good ones stand beside them."""
    topic = context.topic("acks")
    name = f"{context.unique('group')}:one"
    with context.karrow.connect(name) as redis:
        expect_error(redis, ["RPUSH", "acks", f"{topic}:0:0"], f"CONS No consumer registered for Client {name}")
        check_equal(redis.call("RPUSH", f"topics:{topic}", *[f"m{number}" for number in range(6)]), 6, "RPUSH")
        for _ in range(4):
            check(redis.call("BLPOP", f"topics:{topic}", "20"), "a message comes")
        expect_all(redis, [
            (["RPUSH", "acks", "word"], "CONS Cannot parse ack: 'word'"),
            (["RPUSH", "acks", ""], matches(r"CONS .+")),
            (["RPUSH", "acks", f"{topic}:0"], f"CONS Cannot parse ack: '{topic}:0'"),
            (["RPUSH", "acks", f"{topic}:x:0"], f"CONS Cannot parse ack: '{topic}:x:0'"),
            (["RPUSH", "acks", f"{topic}:0:x"], f"CONS Cannot parse ack: '{topic}:0:x'"),
            (["RPUSH", "acks", f"{topic}:0:-1"], "CONS offset cannot be negative, got -1"),
            (["RPUSH", "acks", f"{topic}:0:99999999999999999999"], matches(r"CONS .+")),
            (["RPUSH", "acks", f"{topic}:0:9223372036854775807"], matches(r"CONS .+")),
            (["RPUSH", "acks", f"{topic}:0:4"], matches(r"CONS .+")),   # exists, but was not delivered yet
            (["RPUSH", "acks", f"{topic}:7:0"], matches(r"CONS .+")),   # a partition that is not ours
            (["RPUSH", "acks", "another:0:0"], matches(r"CONS .+")),
            (["RPUSH", "acks", BAD + b":0:0"], matches(r"CONS .+")),
            (["RPUSH", "acks", f"{topic}:0:1", "word"], "CONS Cannot parse ack: 'word'"),
            (["RPUSH", "acks", f"{topic}:0:1,{topic}:0:-5"], "CONS offset cannot be negative, got -5"),
            (["RPUSH", "acks", f"{topic}:0:1", f"{topic}:0:5"], matches(r"CONS .+")),
        ])
        check_equal(redis.call("RPUSH", "acks", f"{topic}:0:0"), 1, "nothing of the refused acks was taken")
        check_equal(redis.call("RPUSH", "acks", f"{topic}:0:0"), 0, "a repeated ack")
        check_equal(redis.call("RPUSH", "acks", f"{topic}:0:1,{topic}:0:2"), 2, "two acks in one value")
        check_equal(redis.call("RPUSH", "acks", "last"), 1, "`acks last` acks the last reply")
        check_equal(redis.call("RPUSH", "acks", f"{topic}:0:3"), 0, "which was offset 3")


@case("input", "inline")
def inline(context):
    """Inline commands, as people type them into nc."""
    with context.karrow.connect() as redis:
        for line, answer in [(b"PING\r\n", "PONG"), (b"  ping \n", "PONG"), (b'ECHO "a b\\x41"\r\n', b"a bA"),
                             (b"ECHO 'x y'\r\n", b"x y"), (b"\r\nECHO z\r\n", b"z")]:
            redis.send_raw(line)
            check_equal(redis.read(), answer, repr(line))


@case("input", "framing")
def framing(context):
    """Lost framing: one clear line, then the connection ends; other connections do not notice."""
    huge = b"*3\r\n$5\r\nRPUSH\r\n"
    with context.karrow.connect() as bystander:
        for data, want in [
            (b"*1\r\n:1\r\n", "ERR Protocol error: expected '$', got ':'"),
            (b"*1\r\n*1\r\n$4\r\nPING\r\n", "ERR Protocol error: expected '$', got '*'"),
            (b"*abc\r\n", "ERR Protocol error: invalid multibulk length"),
            (b"*999999999999\r\n", "ERR Protocol error: invalid multibulk length"),
            (b"*1\r\n$abc\r\n", "ERR Protocol error: invalid bulk length"),
            (b"*1\r\n$-1\r\n", "ERR Protocol error: invalid bulk length"),
            (huge + b"$99999999999\r\n", "ERR Protocol error: invalid bulk length"),
            (b"*1\r\n$4\r\nPINGxx", matches(r"ERR Protocol error: .+")),
            (b'ECHO "open\r\n', "ERR Protocol error: unbalanced quotes in request"),
            (b"x" * 70000, "ERR Protocol error: too big inline request"),
            (b"*1\r\n" * 30000, "ERR Protocol error: expected '$', got '*'"),
        ]:
            with context.karrow.connect() as redis:
                what = repr(data[:40])
                try:
                    redis.send_raw(data)
                except ConnectionError:
                    pass  # it may give up on us before it has read everything
                reply = redis.read()
                check(isinstance(reply, ReplyError), f"{what}: {reply!r}")
                if isinstance(want, str):
                    check_equal(str(reply), want, what)
                else:
                    check(want.fullmatch(str(reply)), f"{what}: {reply}")
                check(redis.closed_by_server(), f"{what}: the connection stays open")
            check_equal(bystander.call("PING"), "PONG", f"a bystander after {what}")


@case("input", "split-and-pipelined")
def split_and_pipelined(context):
    """A request byte by byte, and 3,000 requests at once: replies in the order of the requests."""
    with context.karrow.connect() as redis:
        for byte in Redis.encode("ECHO", b"\r\n$4\r\n") + b"PING\r\n":
            redis.send_raw(bytes([byte]))
        check_equal([redis.read(), redis.read()], [b"\r\n$4\r\n", "PONG"], "byte by byte")
        redis.send_raw(b"".join(Redis.encode("ECHO", number) for number in range(3000)))
        check_equal([redis.read() for _ in range(3000)], [b"%d" % number for number in range(3000)], "pipelined")


@case("input", "nulls")
def nulls(context):
    """A timeout is the null array in RESP2 and `_` in RESP3; fractions of seconds count."""
    topic = context.topic("nulls")
    with context.karrow.connect(f"{context.unique('group')}:one") as redis:
        started = time.monotonic()
        check_equal(repr(redis.call("BLPOP", f"topics:{topic}", "0.3")), repr(Nil("*-1")), "BLPOP in RESP2")
        took = time.monotonic() - started
        check(0.3 <= took < 2, f"BLPOP 0.3 took {took:.2f} s")
        check_equal(repr(redis.call("LPOP", f"topics:{topic}")), repr(Nil("$-1")), "LPOP in RESP2")
        redis.call("HELLO", "3")
        check_equal(repr(redis.call("BLPOP", f"topics:{topic}", "0.1")), repr(Nil("_")), "BLPOP in RESP3")
        check_equal(repr(redis.call("LPOP", f"topics:{topic}")), repr(Nil("_")), "LPOP in RESP3")


@case("input", "missing-topic")
def missing_topic(context):
    """A topic that does not exist is an empty one; when it appears, it is read from its beginning."""
    topic = context.unique("missing")
    with context.karrow.connect(f"{context.unique('group')}:one") as redis:
        check_equal(repr(redis.call("BLPOP", f"topics:{topic}", "1")), repr(Nil("*-1")), "BLPOP of a missing topic")
        check_equal(redis.call("EXISTS", f"topics:{topic}"), 0, "EXISTS: looking creates nothing")
        client = context.karrow.kafka_client()
        client.create_topic(topic, 1)
        client.produce(topic, [b"m0"], 1)
        check_equal(record(redis.call("BLPOP", f"topics:{topic}", "15")), (topic, 0, 0, b"m0"), "once it exists")


@case("input", "produce-to-missing-topic", brokers=("kafka",))
def produce_to_missing_topic(context):
    """Kafka does not create topics here: RPUSH says so at once; RPUSHX answers 1 once, counts, and then says so."""
    topic, other = context.unique("never"), context.unique("never")
    errors = b"producer.delivery.errors"

    def stats(redis):
        flat = redis.call("HGETALL", "stats")
        return dict(zip(flat[0::2], flat[1::2]))
    karrow = context.new_karrow().start()
    with karrow.connect() as redis:
        expect_error(redis, ["RPUSH", f"topics:{topic}", "v"], matches(rf"PROD .*{topic}.*"))
        check_equal(redis.call("DEL", "stats"), 1, "DEL stats")
        check_equal(redis.call("RPUSHX", f"topics:{other}", "v"), 1, "the first RPUSHX")
        eventually(lambda: int(stats(redis)[errors]) == 1, "the failure is counted", 2)
        expect_error(redis, ["RPUSHX", f"topics:{other}", "v"], matches(rf"PROD .*{other}.*"))
        check_equal(redis.call("DUMP", "5000"), 0, "DUMP: nothing is left")


@case("input", "names-become-free")
def names_become_free(context):
    """A name is free before QUIT is answered, after a reset, after CLIENT KILL of a blocked pop."""
    topic, name = context.topic("free"), f"{context.unique('group')}:one"
    karrow = context.karrow

    def owner():
        redis = karrow.connect(name)
        check(not redis.call("BLPOP", f"topics:{topic}", "0.1"), "an empty topic")
        return redis

    first = owner()
    check(first.call("QUIT") in ("OK", b"OK"), "QUIT")
    second = owner()   # would be `already taken` if QUIT had been answered too early
    second.cut()

    def owner_again():
        try:
            return owner()
        except ReplyError as error:
            check_equal(str(error), f"CONS id {name} is already taken", "while the lost connection is noticed")
            return None
    third = eventually(owner_again, "the name is free after a reset", 5)
    number = third.call("CLIENT", "ID")
    third.send("BLPOP", f"topics:{topic}", "0")
    with karrow.connect() as killer:
        eventually(lambda: re.search(rb"id=%d .*cmd=blpop" % number, killer.call("CLIENT", "LIST")), "it blocks")
        check_equal(killer.call("CLIENT", "KILL", "ID", number), 1, "CLIENT KILL ID")
    check(third.closed_by_server(), "the killed connection is closed")
    eventually(owner_again, "the name is free after CLIENT KILL", 5).close()


@case("input", "transactions")
def transactions(context):
    """MULTI queues and EXEC runs; a wrong command aborts it; pops inside never block."""
    topic = context.topic("multi")
    with context.karrow.connect(f"{context.unique('group')}:one") as redis:
        check_equal(redis.call("MULTI"), "OK", "MULTI")
        check_equal(redis.call("RPUSH", f"topics:{topic}", "m0"), "QUEUED", "RPUSH")
        check_equal(redis.call("PING"), "QUEUED", "PING")
        check_equal(redis.call("EXEC"), [1, "PONG"], "EXEC")
        redis.call("MULTI")
        expect = redis.encode("NOSUCH")
        redis.send_raw(expect)
        check(isinstance(redis.read(), ReplyError), "an unknown command inside MULTI")
        redis.send("EXEC")
        check(str(redis.read()).startswith("EXECABORT"), "EXEC after an error")
        check_equal(record(redis.call("BLPOP", f"topics:{topic}", "20"))[3], b"m0", "the message")
        started = time.monotonic()
        redis.call("MULTI")
        redis.call("BLPOP", f"topics:{topic}", "30")
        reply = redis.call("EXEC")
        check(len(reply) == 1 and isinstance(reply[0], Nil), f"BLPOP inside MULTI: {reply!r}")
        check(time.monotonic() - started < 10, "BLPOP inside MULTI blocked")
