"""Owns what SQL stores: tables that are exactly once there whatever is killed, that grow with their topics, that outlive
full disks and lost records, and that others can open.

Every random moment comes from the seed of the run, the broker and the case's name.
"""
import json
import os
import re
import subprocess
import threading
import time

from lib.cases import case
from lib.process import Failure, Hopeless, check, check_equal, eventually, run
from lib.servers import EMBEDDED, KAFKA, refuses_to_start
from lib.sql import Sql, quoted, storing
from lib.tables import libraries

PARTITIONS, ROUNDS = 4, 20
PACE = 1000                  # records per second
PER_ROUND = (50, 2500)       # records that the broker acks between two kills


class Producer:
    """Produces numbered JSON, round-robin and at a pace, and keeps the books of what the broker acked."""

    def __init__(self, client, topic, partitions=PARTITIONS, pace=PACE, padding=""):
        self.client, self.topic, self.partitions, self.pace, self.padding = client, topic, partitions, pace, padding
        self.lock, self.ending = threading.Lock(), threading.Event()
        self.place_of, self.sent, self.failures = {}, 0, []  # place_of: number -> (partition, offset)
        self.taken = set()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self):
        producer = self.client.producer(message_timeout_ms=120000, queue_buffering_max_messages=100000)
        began = time.monotonic()

        def delivered(number):
            def note(error, message):
                with self.lock:
                    if error:
                        self.failures.append(str(error))
                    else:
                        # Where the answer to a first try was lost, the broker says that it has it, but not where: an
                        # offset is missing, or (the embedded broker) it is 0.
                        place = (message.partition(), message.offset())
                        is_known = place[1] is not None and place[1] >= 0 and place not in self.taken
                        self.place_of[number] = place if is_known else None
                        self.taken.add(place)
            return note
        while not self.ending.is_set():
            while self.sent < (time.monotonic() - began) * self.pace:
                number, self.sent = self.sent, self.sent + 1
                producer.produce(self.topic, value=value_of(number, self.padding), partition=number % self.partitions,
                                 on_delivery=delivered(number))
            producer.poll(0.005)
        left = producer.flush(120)
        if left:
            self.failures.append(f"{left} records were never acked")

    def acked(self):
        with self.lock:
            return len(self.place_of)

    def reach(self, count, seconds=120):
        def enough():
            if self.failures:
                raise Hopeless(f"producing: {self.failures[0]}")
            return self.acked() >= count
        eventually(enough, f"{count} records are acked by the broker", seconds)

    def end(self):
        """Stops, and returns what the broker acked: {number: (partition, offset)}, without the place where it is not known."""
        self.ending.set()
        self.thread.join(150)
        check(not self.thread.is_alive() and not self.failures, f"producing: {self.failures[:1] or 'it does not end'}")
        return self.place_of


def value_of(number, padding=""):
    return json.dumps({"number": number, "text": f"record {number}{padding}", "half": number / 2}).encode()


class Looks:
    """Looks at a bare name all the time: what is wrong with it at any moment."""

    QUERY = ('select count(*) as rows, count(distinct ("partition", "offset")) as places, '
             '(select sum(n) from (select max("offset") + 1 as n from {0} group by "partition")) as ends from {0}')

    def __init__(self, sql, producer):
        self.sql, self.producer, self.life = sql, producer, 0
        self.wrong, self.looks, self.most = [], 0, 0
        self.ending = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self):
        life, most = self.life, 0
        while not self.ending.is_set():
            asked_in = self.life
            try:
                answer = self.sql.post(self.QUERY.format(quoted(self.producer.topic)))
                if answer.status != 200:
                    self.wrong.append(f"status {answer.status}: {answer.error()}")
                    continue
                row = answer.rows()[0]
            except OSError:  # it is killed just now
                self.ending.wait(0.02)
                continue
            except Failure as cut:
                if "IncompleteRead" not in str(cut) and "BadStatusLine" not in str(cut):
                    self.wrong.append(str(cut))
                continue
            sent, rows, ends = self.producer.sent, row["rows"], int(row["ends"] or 0)
            if asked_in != self.life:  # an answer from before it was killed
                continue
            if life != self.life:  # the window of a new life begins anew
                life, most = self.life, 0
            self.looks += 1
            for is_wrong, why in ((rows < most, f"{rows} rows, after {most}"),
                                  (rows > sent, f"{rows} rows, but only {sent} were produced"),
                                  (row["places"] != rows, f"{rows} rows at {row['places']} places"),
                                  (ends != rows, f"{rows} rows, but the last ones are at {ends}: there is a gap")):
                if is_wrong and len(self.wrong) < 100:
                    self.wrong.append(f"life {life}: {why}")
            most = max(most, rows)
            self.most = max(self.most, rows)

    def end(self):
        self.ending.set()
        self.thread.join(70)
        check(self.looks > 0, "the bare name was never answered")
        check(not self.wrong, f"{len(self.wrong)} of {self.looks} looks at the bare name: " + "; ".join(self.wrong[:12]))


def check_stored(sql, topic, acked, padding=""):
    """That the table has each record that was acked exactly once, with its values, and nothing that the broker has not."""
    ends = ends_of(sql.karrow, topic)
    sql.stored(topic, sum(ends.values()), 120)
    rows = sql.values(f'select "partition", "offset", payload.number, payload.text, payload.half, error is null '
                      f'from stored.{quoted(topic)}')
    check_equal(len({row[:2] for row in rows}), len(rows), "different (partition, offset) in the table")
    stored = {row[2]: row for row in rows if row[2] is not None}
    missing = [number for number in acked if number not in stored]
    check(not missing, f"{len(missing)} acked records are not in the table, for example number {missing[0] if missing else ''}"
                       f" at {acked[missing[0]] if missing else ''}")
    for number, place in acked.items():
        want = (*(place or stored[number][:2]), number, f"record {number}{padding}", number / 2, True)
        check_equal(stored[number], want, f"row of record {number}")
    beyond = [row[:2] for row in rows if row[1] >= ends.get(row[0], 0)]
    check(not beyond, f"rows that the broker does not have: {sorted(beyond)[:5]}")


def ends_of(karrow, topic):
    """How many records the broker has of each partition of a topic from which nothing was deleted."""
    client = karrow.kafka_client()
    consumer = client.lib.Consumer({"bootstrap.servers": client.bootstrap, "group.id": "ends", "log_level": 0})
    try:
        return {partition: consumer.get_watermark_offsets(client.lib.TopicPartition(topic, partition), timeout=20)[1]
                for partition in range(client.partitions(topic))}
    finally:
        consumer.close()


def kill_loop(context, *arguments, rounds=ROUNDS):
    topic = context.unique("kill")
    karrow = storing(context, {topic: PARTITIONS}, *arguments)
    sql = Sql(karrow)
    producer = Producer(karrow.kafka_client(), topic)
    looks = Looks(sql, producer)
    try:
        for _ in range(rounds):
            producer.reach(producer.acked() + context.random.randint(*PER_ROUND))
            karrow.kill()
            looks.life += 1
            karrow.start()
    finally:
        producer.ending.set()
    acked = producer.end()
    check_stored(sql, topic, acked)
    sql.seen(topic, sum(ends_of(karrow, topic).values()))
    check_equal(sql.ready(), (200, "ok"), "/readyz")
    print(f"        {len(acked)} records, {looks.looks} looks at the bare name", flush=True)
    looks.end()


@case("sql", "kill-9")
def kill_9(context):
    """20 kill -9 of karrow at random moments while a producer goes on: every record that was acked is exactly once in the
    table, and the bare name has at any moment each record once and no gap."""
    kill_loop(context)


@case("sql", "kill-9-while-opening")
def kill_9_while_opening(context):
    """kill -9 right behind the start, before the tables go on: nothing is passed over."""
    topic = context.unique("opening")
    karrow = storing(context, {topic: PARTITIONS})
    producer = Producer(karrow.kafka_client(), topic)
    for _ in range(6):
        karrow.kill()
        karrow.start()
        producer.reach(producer.acked() + context.random.randint(1, 60))
    check_stored(Sql(karrow), topic, producer.end())


@case("sql", "small-window")
def small_window(context):
    """A window that holds far less than waits to be stored: the bare name loses nothing between window and table."""
    topic, padding = context.unique("small"), "x" * 2000
    karrow = storing(context, {topic: PARTITIONS}, "--buffer-limit", "1MiB")
    sql = Sql(karrow)
    producer = Producer(karrow.kafka_client(), topic, pace=3000, padding=padding)
    looks = Looks(sql, producer)
    try:
        producer.reach(20_000)
    finally:
        producer.ending.set()
    check_stored(sql, topic, producer.end(), padding)
    looks.end()


# ---- Columns that change


@case("sql", "evolution")
def evolution(context):
    """New columns, new fields in objects and in objects of lists, integers that become doubles, numbers and objects that
    become text; the last step behind a restart. All rows come out with their values, from the table, the window and both."""
    topic = context.unique("grows")
    karrow = storing(context, {topic: 1})
    sql, client = Sql(karrow), karrow.kafka_client()
    count = 0

    def step(*records):
        nonlocal count
        client.store(topic, [json.dumps(record).encode() for record in records])
        count += len(records)
        sql.seen(topic, count)
        check_alike()
        sql.stored(topic, count)
        check_alike()

    def check_alike():
        name = quoted(topic)
        bare = sql.columns(name)
        check_equal(sql.columns(f"live.{name}"), bare, "columns of live and of the bare name")

    step({"id": 1, "n": 1, "o": {"a": 1}, "l": [{"x": 1}], "v": 1, "w": {"k": 1}, "b": True},
         {"id": 2, "n": 2, "o": {"a": None}, "l": [], "v": 2, "w": {"k": 2}, "b": None})
    step({"id": 3, "n": 3, "new": "x", "o": {"a": 3, "b": {"c": "deep"}}, "l": [{"x": 3, "y": "z"}, {}], "v": 3,
          "w": {"k": 3}, "b": False})
    step({"id": 4, "n": 4.5, "o": {"a": 4.5}, "l": [{"x": 4.5}], "v": "text", "w": "an object is text", "b": "no"})
    check_equal(karrow.stop(), 0, "exit code")
    karrow.start()
    step({"id": 5, "n": "five", "o": "text", "l": "text", "v": [1], "w": 5, "b": {"q": 1}, "later": {"z": 1}})
    step({"id": 6, "n": 6, "o": {"a": 6}, "l": [{"x": 6}], "v": 6, "w": {"k": 6}, "b": True, "later": {"z": 2.5}})
    name = quoted(topic)
    eventually(lambda: sql.columns(f"stored.{name}") == sql.columns(name), "the table has the columns of the topic")
    for table in (f"stored.{name}", name):
        rows = [row["payload"] for row in sql.rows(f'select payload from {table} order by "offset"')]
        check_equal([row["id"] for row in rows], [1, 2, 3, 4, 5, 6], f"id in {table}")
        check_equal([as_number(row["n"]) for row in rows], [1, 2, 3, 4.5, "five", 6], f"n in {table}")
        check_equal([row["new"] for row in rows], [None, None, "x", None, None, None], f"new in {table}")
        check_equal([as_json(row["o"]) for row in rows], [
            {"a": 1}, {}, {"a": 3, "b": {"c": "deep"}}, {"a": 4.5}, "text", {"a": 6}], f"o in {table}")
        check_equal([as_json(row["l"]) for row in rows], [
            [{"x": 1}], [], [{"x": 3, "y": "z"}, {}], [{"x": 4.5}], "text", [{"x": 6}]], f"l in {table}")
        check_equal([as_json(row["v"]) for row in rows], [1, 2, 3, "text", [1], 6], f"v in {table}")
        check_equal([as_json(row["w"]) for row in rows], [
            {"k": 1}, {"k": 2}, {"k": 3}, "an object is text", 5, {"k": 6}], f"w in {table}")
        check_equal([as_json(row["b"]) for row in rows], [True, None, False, "no", {"q": 1}, True], f"b in {table}")
        check_equal([row["later"] for row in rows], [None, None, None, None, {"z": 1.0}, {"z": 2.5}], f"later in {table}")
        check_equal(sql.one(f"select count(*) from {table} where error is not null"), 0, f"bad rows in {table}")


def as_number(value):
    """A number, also where its column has become text."""
    try:
        return float(value)
    except ValueError:
        return value


def as_json(value):
    """A value whose column has become text, where anything but texts is JSON; without fields that are null, which a
    column cannot tell from those that are not there."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return value
    return without_nulls(value)


def without_nulls(value):
    if isinstance(value, dict):
        return {name: without_nulls(of) for name, of in value.items() if of is not None}
    return [without_nulls(of) for of in value] if isinstance(value, list) else value


@case("sql", "columns-come-while-asked")
def columns_come_while_asked(context):
    """Each record brings another column while eight clients ask: no question fails, and no answer forgets rows or columns."""
    topic = context.unique("wide")
    karrow = storing(context, {topic: 1})
    sql, client, name = Sql(karrow), karrow.kafka_client(), quoted(topic)
    client.store(topic, [b'{"id":0}'])
    sql.stored(topic, 1)
    ending, wrong, looks = threading.Event(), [], []

    def ask(query):
        most = 0
        while not ending.is_set():
            answer = sql.post(query)
            if answer.status != 200:
                wrong.append(f"`{query}`: status {answer.status}: {answer.error()[:300]}")
                continue
            rows = answer.rows()
            count = rows[0]["n"] if query.startswith("select count") else len(rows[-1]["payload"])
            if "payload" in rows[0] and not isinstance(rows[0]["payload"], dict):
                wrong.append(f"`{query}`: the column is not an object: {rows[0]['payload']!r}")
            elif count < most:
                wrong.append(f"`{query}`: {count} after {most}")
            most = max(most, count)
            looks.append(count)

    queries = [f"select count(payload.id) as n from {name}", f'select payload from {name} order by "offset" desc limit 1',
               f"select count(payload.id) as n from stored.{name}", f"select payload from live.{name} limit 1"]
    clients = [threading.Thread(target=ask, args=(query,), daemon=True) for query in queries * 2]
    for each in clients:
        each.start()
    try:
        for number in range(1, 41):
            client.store(topic, [json.dumps({"id": number, f"column{number}": {"x": number}}).encode()])
    finally:
        sql_ended = time.monotonic() + 3  # a few transactions of the sink more
        eventually(lambda: time.monotonic() > sql_ended or wrong, "they go on asking")
        ending.set()
        for each in clients:
            each.join(60)
    check(len(looks) > 100, f"only {len(looks)} answers")
    check(not wrong, f"{len(wrong)} of {len(looks)} answers are wrong: " + "; ".join(wrong[:3]))
    sql.stored(topic, 41)
    rows = [row["payload"] for row in sql.rows(f'select payload from stored.{name} order by "offset"')]
    for number, row in enumerate(rows):
        found = {key: value for key, value in row.items() if value is not None}
        check_equal(found, {"id": number, **({f"column{number}": {"x": number}} if number else {})}, f"row {number}")


@case("sql", "first-type-after-a-restart")
def first_type_after_a_restart(context):
    """What karrow sees first of a topic is always of another type than what the table has: bytes, text, JSON, a number."""
    topic = context.unique("types")
    karrow = storing(context, {topic: 1})
    sql, client, name = Sql(karrow), karrow.kafka_client(), quoted(topic)
    values = [b'{"a":1}', b"plain text", b'{"a":"x"}', b"\xff\xfe", b'{"b":[1,2]}', b"7"]
    for number, value in enumerate(values, 1):
        client.store(topic, [value])
        sql.stored(topic, number)
        sql.seen(topic, number)
        check_equal(sql.ready(), (200, "ok"), "/readyz")
        check_equal(karrow.stop(), 0, "exit code")
        karrow.start()
    eventually(lambda: sql.columns(f"live.{name}") == sql.columns(name) == sql.columns(f"stored.{name}"),
               "all have the same columns")
    check_equal(sql.values(f'select "offset" from {name} order by 1'), [(at,) for at in range(len(values))], "offsets")
    pa = libraries()
    found = pa.ipc.open_stream(sql.get("/v1/sql", q=f'select payload, error from stored.{name} order by "offset"',
                                       format="arrow").body).read_all()
    texts = []
    for payload, error in zip(*(found.column(at).to_pylist() for at in ("payload", "error"))):
        kept = error["payload"] if error else payload
        texts.append(kept if isinstance(kept, bytes) else json.dumps(without_nulls(kept), separators=(",", ":")).encode()
                     if isinstance(kept, (dict, list)) else str(kept).encode())
    check_equal(texts, values, "what each record is in the table")


# ---- What goes wrong


class SmallDisk:
    """A file system of a few megabytes that the case fills. It needs the right to mount."""

    def __init__(self, folder, megabytes):
        self.folder = folder
        folder.mkdir(parents=True)
        try:
            run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "karrow-e2e", folder], "mounting a small disk")
        except Failure as failure:
            raise Failure(f"this case mounts a tmpfs of {megabytes} MB: run it as root, in a container with "
                          f"--cap-add SYS_ADMIN ({failure})") from None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        subprocess.run(["umount", "-l", str(self.folder)], check=False)

    def resize(self, megabytes):
        run(["mount", "-o", f"remount,size={megabytes}m", self.folder], "making room")


@case("sql", "full-disk")
def full_disk(context):
    """The disk of the tables is full: /readyz says it, everything but storing goes on; when there is room again, all rows
    are there exactly once, without a restart."""
    topic, padding = context.unique("full"), os.urandom(1500).hex()
    with SmallDisk(context.folder / "disk", 12) as disk:
        karrow = storing(context, {topic: PARTITIONS}, "--db-path", disk.folder / "karrow.duckdb")
        sql = Sql(karrow)
        producer = Producer(karrow.kafka_client(), topic, pace=2000, padding=padding)
        try:
            def is_full():
                status, text = sql.ready()
                return text if status == 503 and topic in text else None
            said = eventually(is_full, "/readyz says that the topic cannot be stored", 90)
            check("space" in said or "full" in said, f"/readyz does not say why: {said!r}")
            # Everything else goes on.
            before = producer.acked()
            producer.reach(before + 2000)
            with karrow.connect(context.unique("group") + ":one") as redis:
                check_equal(redis.call("RPUSH", f"topics:{topic}", '{"number":-1}'), 1, "RPUSH")
                check(redis.call("BLPOP", f"topics:{topic}:" + '{"auto.offset.reset":"earliest"}', "20", seconds=30),
                      "a message")
            eventually(lambda: sql.one(f"select count(*) from live.{quoted(topic)} where payload.number = -1") == 1,
                       "the window goes on")
            check_equal(is_full() is not None, True, "/readyz says 503 still")
            check(sql.metric("karrow_store_errors_total", topic=topic) > 0, "karrow_store_errors_total counts")
            stored = sql.one(f"select count(*) from stored.{quoted(topic)}")
            places = sql.one(f'select count(distinct ("partition", "offset")) from stored.{quoted(topic)}')
            check_equal(places, stored, "places in the table while the disk is full")
        finally:
            producer.ending.set()
        acked = producer.end()
        disk.resize(600)
        eventually(lambda: sql.ready() == (200, "ok"), "/readyz is ok when there is room", 60)
        check_stored(sql, topic, acked, padding)
        check_equal(karrow.stop(), 0, "exit code")
        karrow.start()
        check_stored(sql, topic, acked, padding)
        check_equal(karrow.stop(), 0, "exit code")


@case("sql", "full-disk-and-kill-9")
def full_disk_and_kill_9(context):
    """killed while its disk is full, and started with room: all rows are there exactly once."""
    topic, padding = context.unique("full"), os.urandom(1500).hex()
    with SmallDisk(context.folder / "disk", 12) as disk:
        karrow = storing(context, {topic: PARTITIONS}, "--db-path", disk.folder / "karrow.duckdb")
        sql = Sql(karrow)
        producer = Producer(karrow.kafka_client(), topic, pace=2000, padding=padding)
        try:
            eventually(lambda: sql.ready()[0] == 503, "/readyz says that the topic cannot be stored", 90)
        finally:
            producer.ending.set()
        acked = producer.end()
        karrow.kill()
        disk.resize(600)
        karrow.start()
        check_stored(sql, topic, acked, padding)
        eventually(lambda: sql.ready() == (200, "ok"), "/readyz is ok")
        check_equal(karrow.stop(), 0, "exit code")


@case("sql", "records-deleted-before-they-were-stored", brokers=(KAFKA,))
def records_deleted(context):
    """Kafka deletes records while karrow is down: the table goes on behind the gap, and log and metrics say so."""
    topic = context.unique("gone")
    karrow = storing(context, {topic: 2})
    sql, client = Sql(karrow), karrow.kafka_client()
    for partition in (0, 1):
        client.store(topic, [value_of(number) for number in range(10)], partition)
    sql.stored(topic, 20)
    check_equal(karrow.stop(), 0, "exit code")
    for partition in (0, 1):
        client.store(topic, [value_of(number) for number in range(10, 40)], partition)
    client.delete_records(topic, 25, 0)
    karrow.start()
    sql.stored(topic, 65)
    got = dict(sql.values(f'select "partition", list("offset" order by "offset") from stored.{quoted(topic)} group by 1'))
    check_equal(got, {0: [*range(10), *range(25, 40)], 1: [*range(40)]}, "offsets in the table")
    log = karrow.server.log()
    check(re.search(rf"ERROR .*deleted before they were stored.*{topic}", log), f"the log does not say it: {log[-800:]!r}")
    check("25" in log, "the log does not say where it goes on")
    check_equal(sql.metric("karrow_store_skipped_offsets_total", topic=topic), 15, "offsets that were skipped")
    client.store(topic, [value_of(40)], 0)
    sql.stored(topic, 66)
    eventually(lambda: sql.ready() == (200, "ok"), "/readyz is ok")


@case("sql", "topic-made-anew")
def topic_made_anew(context):
    """A topic is deleted and made again while karrow stores it: nothing of the new one is taken for the old one, and
    /readyz says what to do."""
    made_anew(context, is_down=False)


@case("sql", "topic-made-anew-while-down")
def topic_made_anew_while_down(context):
    """The same, but karrow does not see it happen."""
    made_anew(context, is_down=True)


def made_anew(context, is_down):
    topic = context.unique("anew")
    karrow = storing(context, {topic: 1})
    sql, client = Sql(karrow), karrow.kafka_client()
    client.store(topic, [value_of(number) for number in range(10)])
    sql.stored(topic, 10)
    storing_arguments = karrow.arguments
    if is_down:
        check_equal(karrow.stop(), 0, "exit code")
        karrow.arguments = []  # where karrow is the broker itself, that goes on
        karrow.start()
    client.delete_topic(topic)
    client.create_topic(topic, 1)
    client.store(topic, [value_of(100 + number) for number in range(3)])
    if is_down:
        check_equal(karrow.stop(), 0, "exit code")
        karrow.arguments = storing_arguments
        karrow.start()

    def said():
        status, text = sql.ready()
        return text if status == 503 and topic in text else None
    text = eventually(said, "/readyz says that the topic was made anew", 30)
    check("made anew" in text, f"/readyz: {text!r}")
    client.store(topic, [value_of(103 + number) for number in range(10)])  # beyond the offsets of the old one, too
    stays(sql, topic, [(10, 9)])
    check(said(), "/readyz says 503 still")


def stays(sql, topic, rows, seconds=3):
    """That a table has these rows and no others, for longer than rows wait to be stored."""
    until = time.monotonic() + seconds

    def same():
        found = sql.values(f"select count(*), max(payload.number) from stored.{quoted(topic)}")
        if found != rows:
            raise Hopeless(f"rows of the table and the last one: got {found}, want {rows}")
        return time.monotonic() > until
    eventually(same, "the table stays as it is")


# ---- The file


@case("sql", "clean-stop")
def clean_stop(context):
    """After SIGTERM everything that was acked is in the file, which is whole without a log beside it, and others can open it."""
    libraries()
    import duckdb
    topic = context.unique("stop")
    karrow = storing(context, {topic: PARTITIONS})
    sql, file = Sql(karrow), karrow.folder / "karrow.duckdb"
    producer = Producer(karrow.kafka_client(), topic, pace=2000)
    producer.reach(5000)
    acked = producer.end()
    # What the window has must be in the file after the stop, though it is younger than the sink's linger.
    eventually(lambda: sql.one(f"select count(*) from {quoted(topic)}") == len(acked), "the window has everything")
    check_equal(karrow.stop(), 0, "exit code")
    left = sorted(path.name for path in karrow.folder.iterdir() if path.name.startswith("karrow.duckdb"))
    check_equal(left, ["karrow.duckdb"], "files of DuckDB")
    with duckdb.connect(str(file), read_only=True) as database:
        rows = database.sql(f'select "partition", "offset", payload.number, payload.text from main.{quoted(topic)}').fetchall()
        nexts = database.sql(f"select \"partition\", next_offset from _karrow.offsets where topic = '{topic}'").fetchall()
    check_equal(sorted(rows), sorted((*place, number, f"record {number}") for number, place in acked.items()),
                "rows of the file")
    ends = {partition: 1 + max(offset for of, offset in acked.values() if of == partition) for partition in range(PARTITIONS)}
    check_equal(dict(nexts), ends, "next offsets in the file")
    karrow.start()
    check_stored(sql, topic, acked)


@case("sql", "file-in-use")
def file_in_use(context):
    """A second karrow on the same file does not start and says why; the first one goes on."""
    topic = context.unique("twice")
    karrow = storing(context, {topic: 1})
    sql, file = Sql(karrow), karrow.folder / "karrow.duckdb"
    karrow.kafka_client().store(topic, [value_of(0)])
    sql.stored(topic, 1)
    arguments = ["--brokers", karrow.bootstrap, "--port", 0, "--http-port", "off", "--flight-port", "off",
                 "--topics", topic, "--persist", "--db-path", file]
    code, written = refuses_to_start(karrow.binary, arguments, context.folder / "second")
    check(code not in (0, None) and code > 0, f"exit code {code}")
    check(str(file) in written and "lock" in written.lower(), f"the second karrow says {written!r}")
    check_equal(len(written.strip().splitlines()), 1, f"lines of {written!r}")
    karrow.kafka_client().store(topic, [value_of(1)])
    sql.stored(topic, 2)


@case("sql", "file-that-is-none")
def file_that_is_none(context):
    """A file that DuckDB did not write, a folder, a path that does not exist: no start, and the path is named."""
    folder = context.folder / "files"
    folder.mkdir(parents=True)
    (folder / "text.duckdb").write_text("this is no database " * 1000)
    wrong = []
    for path in (folder / "text.duckdb", folder, folder / "nosuch" / "x.duckdb"):
        arguments = ["--brokers", "127.0.0.1:1", "--port", 0, "--http-port", "off", "--flight-port", "off", "--topics", "t",
                     "--persist", "--db-path", path]
        code, written = refuses_to_start(context.run.binary(), arguments, folder)
        if code in (0, None) or str(path) not in written or len(written.strip().splitlines()) != 1 or "panicked" in written:
            wrong.append(f"{path.name}: exit code {code}: {written!r}")
    check_equal((folder / "text.duckdb").read_text(), "this is no database " * 1000, "the file that is none")
    check(not wrong, "\n    " + "\n    ".join(wrong))


@case("sql", "retention")
def retention(context):
    """db-max-age: rows whose time is over leave the table, younger ones stay, and a restart brings none back."""
    topic = context.unique("old")
    karrow = storing(context, {topic: 1}, "--db-max-age", "1h")
    sql, client, now = Sql(karrow), karrow.kafka_client(), int(time.time() * 1000)
    client.store(topic, [{"value": value_of(number), "timestamp": now - (2 * 3600_000 if number < 5 else 0)}
                         for number in range(10)])
    left = f"select list(payload.number order by 1) from stored.{quoted(topic)}"
    eventually(lambda: sql.one(left) == [5, 6, 7, 8, 9], "old rows leave the table", 90)
    check_equal(karrow.stop(), 0, "exit code")
    karrow.start()
    client.store(topic, [value_of(10)])
    eventually(lambda: sql.one(left) == [5, 6, 7, 8, 9, 10], "the table goes on", 30)
