"""Rows per second of a JSON topic into a pyarrow table: by redis-py through karrow, and by confluent-kafka with json.

Arguments: karrow's port, Kafka's address, topic, messages, rounds. Prints one line.
"""
import json
import statistics
import sys
import time

import confluent_kafka
import pyarrow as pa
import redis


def through_karrow(port, topic, count, group):
    client = redis.Redis(port=port, client_name=f"{group}:one", socket_timeout=None, single_connection_client=True)
    tables, rows = [], 0
    while rows < count:
        _, stream = client.blpop(f"arrow:{topic}", 60)
        tables.append(pa.ipc.open_stream(stream).read_all())
        rows += tables[-1].num_rows
    # A field that comes later is a new column; here all have the same.
    table = pa.concat_tables([table.replace_schema_metadata(None) for table in tables])
    assert table.num_rows == count and pa.types.is_struct(table.schema.field("payload").type)


def by_itself(brokers, topic, count, group):
    consumer = confluent_kafka.Consumer({"bootstrap.servers": brokers, "group.id": group, "auto.offset.reset": "earliest"})
    consumer.subscribe([topic])
    rows = []
    while len(rows) < count:
        for message in consumer.consume(10_000, 1.0):
            assert message.error() is None, message.error()
            rows.append({
                "topic": message.topic(), "partition": message.partition(), "offset": message.offset(),
                "timestamp": message.timestamp()[1], "key": message.key(), "payload": json.loads(message.value()),
            })
    consumer.close()
    assert pa.Table.from_pylist(rows).num_rows == count


def main():
    port, brokers, topic, count, rounds = int(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
    ratios, rates = [], []
    for number in range(rounds + 1):
        times = []
        for work, at in ((through_karrow, port), (by_itself, brokers)):
            began = time.monotonic()
            work(at, topic, count, f"python-{work.__name__}-{number}-{time.time_ns()}")
            times.append(time.monotonic() - began)
        if number:
            ratios.append(times[1] / times[0])
            rates.append(count / times[0])
    print(f"Python, JSON into a pyarrow table: rows/s through karrow ÷ confluent-kafka + json + pyarrow "
          f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f}); {statistics.median(rates):.0f} rows/s")


main()
