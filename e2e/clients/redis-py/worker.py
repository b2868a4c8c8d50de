"""redis-py with its default options: the scenario of e2e/README.md.

A consumer needs one connection that stays its own: `single_connection_client=True` is redis-py's way to say so.
"""
import json
import os
import sys

import redis

PORT, TOPIC, GROUP = int(os.environ["KARROW_PORT"]), os.environ["TOPIC"], os.environ["GROUP"]
NAME = f"{GROUP}:redis-py"


def connect():
    return redis.Redis(port=PORT, client_name=NAME, single_connection_client=True)


def step(name, *checks):
    """Prints one result line; `checks` are (what, got, want)."""
    wrong = [f"{what}: got {got!r}, want {want!r}" for what, got, want in checks if got != want]
    print(f"not ok {name} {'; '.join(wrong)}" if wrong else f"ok {name}", flush=True)


def record(offset, value):
    return (b"topic", TOPIC.encode(), b"partition", 0, b"offset", offset, b"value", value)


def fields(text):
    message = json.loads(text)
    return message["topic"], message["partition"], message["offset"], message["key"], message["value"]


consumer = connect()
step("connect", ("CLIENT GETNAME", consumer.client_getname(), NAME))

pipeline = redis.Redis(port=PORT).pipeline()  # MULTI … EXEC by default
pipeline.rpush(f"topics:{TOPIC}", "m0", "m1")
pipeline.rpushx(f"topics:{TOPIC}:user:2", "m2")
pipeline.rpush(f"topics:{TOPIC}", "m3")
stored = pipeline.execute()
step("produce", ("pipeline", stored, [2, 1, 1]), ("RPUSH", redis.Redis(port=PORT).rpush(f"topics:{TOPIC}", "m4"), 1))

# Its socket timeout is 5 s, so pops that block ask for less.
step("consume", ("BLPOP topics:", consumer.execute_command("BLPOP", f"topics:{TOPIC}", 4), record(0, b"m0")))
key, message = consumer.blpop(f"json:{TOPIC}", timeout=4)
step("json", ("key", key, f"json:{TOPIC}".encode()), ("message", fields(message), (TOPIC, 0, 1, None, "m1")))
step("ack", ("ack", consumer.rpush("acks", f"{TOPIC}:0:1"), 1), ("late ack", consumer.rpush("acks", f"{TOPIC}:0:0"), 0))
step("lpop", ("message", fields(consumer.lpop(f"json:{TOPIC}")), (TOPIC, 0, 2, "user:2", "m2")))
with redis.Redis(port=PORT, client_name=NAME) as pooled:
    step("ack-elsewhere", ("ack", pooled.rpush("acks", f"{TOPIC}:0:2"), 1))
drained = [fields(text)[4] for text in consumer.lpop(f"json:{TOPIC}", 10)]
step("timeout", ("LPOP json: 10", drained, ["m3", "m4"]), ("BLPOP", consumer.blpop(f"json:{TOPIC}", timeout=1), None),
     ("LPOP", consumer.lpop(f"json:{TOPIC}"), None))

consumer.close()
consumer = connect()
again = [consumer.execute_command("BLPOP", f"topics:{TOPIC}", 4) for _ in range(2)]
step("resume-unacked", ("unacked", again, [record(3, b"m3"), record(4, b"m4")]),
     ("ack", consumer.rpush("acks", f"{TOPIC}:0:4"), 1))
consumer.close()
consumer = connect()
consumer.rpush(f"topics:{TOPIC}", "m5")
step("resume-acked", ("next", fields(consumer.blpop(f"json:{TOPIC}", timeout=4)[1]), (TOPIC, 0, 5, None, "m5")),
     ("ack", consumer.rpush("acks", f"{TOPIC}:0:5"), 1))
consumer.close()
sys.exit(0)
