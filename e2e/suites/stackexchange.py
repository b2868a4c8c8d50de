"""Owns StackExchange.Redis-style use: its handshake, replayed over a raw socket, and consuming without blocking.

There is no .NET here. The library opens one connection, asks who the server is, ties its breaker, and proves the
connection with ECHO; it multiplexes all threads over it, so it refuses blocking pops and uses LPOP.
"""
import json
import os

from lib.cases import case
from lib.process import check, check_equal, eventually
from lib.resp import Nil, Redis, ReplyError, record


def handshake(port):
    """Everything is sent at once, as the library does; errors are fine where a plain Redis would give one."""
    redis, proof = Redis(port), os.urandom(16)
    commands = [
        ("HELLO", "3"), ("CLIENT", "SETNAME", "web-1(SE.Redis-v2.9.17)"),
        ("CLIENT", "SETINFO", "LIB-NAME", "SE.Redis"), ("CLIENT", "SETINFO", "LIB-VER", "2.9.17"), ("CLIENT", "ID"),
        ("CONFIG", "GET", "timeout"), ("CONFIG", "GET", "slave-read-only"), ("CONFIG", "GET", "databases"),
        ("CONFIG", "GET", "*"), ("SENTINEL", "MASTERS"), ("INFO", "replication"), ("INFO", "server"),
        ("CLUSTER", "NODES"), ("GET", "__Booksleeve_TieBreak"), ("ECHO", proof)]
    redis.send_raw(b"".join(Redis.encode(*command) for command in commands))
    replies = [redis.read() for _ in commands]
    return redis, proof, {" ".join(map(str, command[:2])) if command[0] != "ECHO" else "ECHO": reply
                          for command, reply in zip(commands, replies)}


@case("stackexchange", "handshake")
def check_handshake(context):
    """Every answer has the type that the library reads; errors where a plain Redis gives them."""
    redis, proof, said = handshake(context.karrow.port)
    with redis:
        hello = said["HELLO 3"]
        check(isinstance(hello, dict), f"HELLO 3: {hello!r}")
        check_equal(hello[b"proto"], 3, "proto in HELLO's answer")
        for key in (b"server", b"version", b"mode", b"role"):
            check(isinstance(hello.get(key), bytes), f"HELLO's {key!r} is {hello.get(key)!r}")
        check_equal(said["CLIENT SETNAME"] in ("OK", b"OK"), True, "SETNAME of a name without a colon")
        check_equal(said["CLIENT SETINFO"], "OK", "CLIENT SETINFO")
        check(type(said["CLIENT ID"]) is int, f"CLIENT ID: {said['CLIENT ID']!r}")
        check(isinstance(said["CONFIG GET"], dict), f"CONFIG GET in RESP3: {said['CONFIG GET']!r}")
        for command in ("SENTINEL MASTERS", "CLUSTER NODES"):
            check(isinstance(said[command], ReplyError), f"{command}: {said[command]!r}")
        info = said["INFO replication"]
        check(isinstance(info, bytes) and b"role:master" in info, f"INFO replication: {info!r}")
        info = said["INFO server"]
        check(isinstance(info, bytes) and b"redis_version:" in info and b"redis_mode:standalone" in info,
              f"INFO server: {info!r}")
        tie = said["GET __Booksleeve_TieBreak"]
        check(isinstance(tie, (Nil, ReplyError)), f"GET of the tie-breaker: {tie!r}")
        check_equal(said["ECHO"], proof, "ECHO of 16 arbitrary bytes")


@case("stackexchange", "lpop")
def check_lpop(context):
    """LPOP under a name, over two connections: pops, acks, ends with null, and continues after the last ack."""
    topic, name = context.topic("stackexchange"), f"{context.unique('group')}:web"
    redis, _, _ = handshake(context.karrow.port)
    with redis:
        check(redis.call("CLIENT", "SETNAME", name) in ("OK", b"OK"), "a name with a colon after one without")
        check_equal(redis.call("RPUSH", f"topics:{topic}", "m0", "m1", "m2"), 3, "RPUSH")
        # The first LPOP waits for the assignment; the broker may need longer for the very first group.
        first = eventually(lambda: redis.call("LPOP", f"topics:{topic}"), "LPOP gives the first message", 20)
        check_equal(record(first), (topic, 0, 0, b"m0"), "first LPOP")
        second = json.loads(redis.call("LPOP", f"json:{topic}"))
        check_equal((second["offset"], second["value"]), (1, "m1"), "LPOP json:")
        check_equal(redis.call("RPUSH", "acks", f"{topic}:0:1"), 1, "ack")
        check_equal(record(redis.call("LPOP", f"topics:{topic}"))[2], 2, "third LPOP")
        check(isinstance(redis.call("LPOP", f"topics:{topic}"), Nil), "LPOP at the end is null")
        redis.cut()
    redis, _, _ = handshake(context.karrow.port)
    with redis:
        redis.call("CLIENT", "SETNAME", name)
        again = eventually(lambda: redis.call("LPOP", f"topics:{topic}"), "LPOP gives the unacked message", 20)
        check_equal(record(again), (topic, 0, 2, b"m2"), "after the reconnect")
