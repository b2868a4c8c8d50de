"""Owns the swap: a user of rafka changes the binary and keeps the configuration file, the commands, the error texts."""
import re

from lib.cases import case
from lib.process import check, check_equal, eventually
from lib.resp import ReplyError, record
from lib.servers import KAFKA, refuses_to_start, write_json


def configuration(bootstrap, **changes):
    """A file as rafka's users have it: numbers and booleans, options of its Go client, three sections."""
    sections = {
        "general": {"api.version.request": True, "bootstrap.servers": bootstrap, "session.timeout.ms": 6000,
                    "log.connection.close": False, "heartbeat.interval.ms": 500, "log_level": 3},
        "consumer": {"go.events.channel.enable": False, "go.application.rebalance.enable": False,
                     "enable.auto.commit": True, "auto.commit.interval.ms": 500, "enable.auto.offset.store": False,
                     "auto.offset.reset": "latest", "enable.partition.eof": False},
        "producer": {"go.delivery.reports": True, "queue.buffering.max.ms": 0, "message.send.max.retries": 2,
                     "retry.backoff.ms": 100},
    }
    for section, options in changes.items():
        sections[section] = {**sections.get(section, {}), **options}
    return sections


def arguments(karrow):
    """`serve -c <file>` without --brokers: the file names them."""
    position = karrow.command.index("--brokers")
    return karrow.command[2:position] + karrow.command[position + 2:]


def swapped(context, **changes):
    """karrow with nothing but rafka's file and ports."""
    karrow = context.new_karrow()
    path = write_json(karrow.folder / "librdkafka.json", configuration(karrow.bootstrap, **changes))
    karrow.command = [karrow.binary, "serve", *arguments(karrow), "-c", path]
    return karrow


@case("rafka", "swap", brokers=(KAFKA,))
def swap(context):
    """The whole day of a rafka user: produce, flush, look, consume, ack, come back."""
    karrow = swapped(context).start()
    topic, group = context.unique("swap"), context.unique("group")
    client = karrow.kafka_client()
    client.create_topic(topic, 1)
    with karrow.connect(f"{group}:cons") as consumer, karrow.connect() as producer:
        check_equal(consumer.call("CLIENT", "GETNAME"), f"{group}:cons".encode(), "CLIENT GETNAME")
        key = f'topics:{topic}:{{"auto.offset.reset":"earliest"}}'
        check_equal(producer.call("RPUSHX", f"topics:{topic}", "0"), 1, "RPUSHX")
        check_equal(producer.call("RPUSHX", f"topics:{topic}:foo", "1"), 1, "RPUSHX with a key")
        check_equal(producer.call("RPUSHX", f"topic:{topic}:bar", "2"), 1, "the unchecked prefix")
        check_equal(producer.call("DUMP", "5000"), 0, "DUMP")
        check(f"topics:{topic}".encode() in producer.call("KEYS", "topics:"), "KEYS topics:")
        flat = producer.call("HGETALL", "stats")
        check_equal(flat[0:6:2], [b"producer.unflushed.messages", b"producer.delivery.errors",
                                  b"producer.unknown.events"], "the first three fields of stats")
        check(all(re.fullmatch(rb"\d+", value) for value in flat[1:6:2]), f"stats: {flat}")
        check_equal(producer.call("DEL", "stats"), 1, "DEL stats")
        got = [record(consumer.call("BLPOP", key, "20")) for _ in range(3)]
        check_equal(got, [(topic, 0, number, b"%d" % number) for number in range(3)], "the options in the key win")
        check_equal(consumer.call("RPUSH", "acks", f"{topic}:0:1"), 1, "ack")
        check(consumer.call("QUIT") in ("OK", b"OK"), "QUIT")
    with karrow.connect(f"{group}:cons") as consumer:
        check_equal(record(consumer.call("BLPOP", f"topics:{topic}:", "20")), (topic, 0, 2, b"2"), "unacked again")
    check_equal(karrow.stop(), 0, "exit code after SIGTERM")


@case("rafka", "file-options-count", brokers=(KAFKA,))
def file_options_count(context):
    """`auto.offset.reset=latest` of the file holds where the key says nothing; the commit interval too."""
    karrow = swapped(context).start()
    topic, group = context.unique("latest"), context.unique("group")
    client = karrow.kafka_client()
    client.create_topic(topic, 1)
    client.produce(topic, [b"old"], 1)
    with karrow.connect(f"{group}:cons") as consumer:
        check(not consumer.call("BLPOP", f"topics:{topic}", "1"), "a message from before `latest`")
        eventually(lambda: client.committed(group, topic, 1) == {0: 1}, "`latest` is a committed number", 20)
        client.produce(topic, [b"new"], 1)
        check_equal(record(consumer.call("BLPOP", f"topics:{topic}", "20"))[2:], (1, b"new"), "the new message")


@case("rafka", "go-options-are-ignored", brokers=(KAFKA,))
def go_options(context):
    """Options of rafka's Go client and those that karrow owns are a warning, by name."""
    karrow = swapped(context, consumer={"enable.auto.commit": False}).start()
    log = karrow.server.log()
    for option in ("go.events.channel.enable", "go.delivery.reports", "enable.auto.commit"):
        check(option in log, f"no warning names {option}:\n{karrow.server.log_tail()}")


@case("rafka", "bad-files", brokers=(KAFKA,))
def bad_files(context):
    """A file that is missing, unreadable or wrong: exit code 64 and one line that names the file and the thing."""
    karrow = context.new_karrow()
    base, wrong = arguments(karrow), []
    good = configuration(karrow.bootstrap)
    folder = karrow.folder
    for name, content, words in [
        ("unknown.json", {**good, "consumer": {"no.such.option": 1}}, ["unknown.json", "no.such.option"]),
        ("refused.json", {**good, "producer": {"queue.buffering.max.messages": -7}},
         ["refused.json", "queue.buffering.max.messages"]),
        ("word.json", {**good, "consumer": {"auto.commit.interval.ms": "soon"}},
         ["word.json", "auto.commit.interval.ms"]),
        ("section.json", {**good, "consumers": {}}, ["section.json", "consumers"]),
        ("list.json", "[1, 2]", ["list.json"]), ("cut.json", '{"general": {', ["cut.json"]), ("empty.json", "", ["empty.json"]),
        ("nested.json", {"general": {"client.id": {"a": 1}}}, ["nested.json", "client.id"]),
        ("missing.json", None, ["missing.json"]), ("a-folder.json", "folder", ["a-folder.json"]),
        ("unknown.toml", "no_such_setting = 1\n", ["unknown.toml", "no_such_setting"]),
        ("cut.toml", "port = \n", ["cut.toml"]),
    ]:
        path = folder / name
        if content == "folder":
            path.mkdir()
        elif content is not None:
            write_json(path, content)
        code, written = refuses_to_start(karrow.binary, [*base, "-c", path], folder)
        if code != 64:
            wrong.append(f"{name}: exit code {code}: {written!r}")
        elif not all(word in written for word in words):
            wrong.append(f"{name}: {written!r} does not name {words}")
        elif len(written.strip().splitlines()) != 1:
            wrong.append(f"{name}: more than one line: {written!r}")
    check(not wrong, "\n    " + "\n    ".join(wrong))


@case("rafka", "flags-beat-the-file", brokers=(KAFKA,))
def flags_beat_the_file(context):
    """--brokers wins over the file's bootstrap.servers."""
    karrow = context.new_karrow()
    path = write_json(karrow.folder / "librdkafka.json", configuration("127.0.0.1:1"))
    karrow.arguments = ["-c", path]
    karrow.start()
    topic = context.unique("flags")
    karrow.kafka_client().create_topic(topic, 1)
    with karrow.connect() as redis:
        check_equal(redis.call("RPUSH", f"topics:{topic}", "m0"), 1, "RPUSH")


@case("rafka", "monitor")
def monitor(context):
    """MONITOR shows the commands of other connections, without secrets."""
    with context.karrow.connect() as watcher, context.karrow.connect() as other:
        check_equal(watcher.call("MONITOR"), "OK", "MONITOR")
        other.send("AUTH", "user", "open-sesame")
        other.read()
        other.call("ECHO", "done")
        seen = []
        while not seen or "done" not in seen[-1]:
            seen.append(watcher.read(seconds=10))
        check(all("open-sesame" not in line for line in seen), f"MONITOR shows a password: {seen}")
        check(re.search(r'\[0 127\.0\.0\.1:\d+\] "ECHO" "done"', seen[-1], re.IGNORECASE), f"MONITOR: {seen[-1]!r}")
