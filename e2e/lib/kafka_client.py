"""Owns the ordinary Kafka client of the tests (confluent-kafka): topics, producing, committed offsets.

It speaks to the broker without karrow, so that what karrow says can be checked against what the broker has.
"""
from . import install
from .process import Failure, eventually


class KafkaClient:
    def __init__(self, bootstrap):
        install.python_packages()
        import confluent_kafka
        import confluent_kafka.admin
        self.lib, self.bootstrap = confluent_kafka, bootstrap
        self.admin = confluent_kafka.admin.AdminClient(self._config())

    def _config(self, **more):
        quiet = {"bootstrap.servers": self.bootstrap, "log_level": 0, "socket.timeout.ms": 10000,
                 "reconnect.backoff.max.ms": 500}
        return {**quiet, **{key.replace("_", "."): value for key, value in more.items()}}

    def partitions(self, topic):
        """How many partitions the topic has; 0 where it does not exist."""
        try:
            found = self.admin.list_topics(timeout=10).topics.get(topic)
        except self.lib.KafkaException as error:
            raise Failure(f"no metadata from {self.bootstrap}: {error}") from None
        return len(found.partitions) if found and not found.error else 0

    def create_topic(self, topic, partitions, **config):
        config = {key.replace("_", "."): str(value) for key, value in config.items()}
        new = self.lib.admin.NewTopic(topic, num_partitions=partitions, replication_factor=1, config=config)
        try:
            self.admin.create_topics([new], request_timeout=15)[topic].result()
        except self.lib.KafkaException as error:
            raise Failure(f"cannot create topic {topic}: {error}") from None
        eventually(lambda: self.partitions(topic) == partitions, f"topic {topic} has {partitions} partitions")

    def delete_topic(self, topic):
        try:
            self.admin.delete_topics([topic], request_timeout=15)[topic].result()
        except self.lib.KafkaException as error:
            raise Failure(f"cannot delete topic {topic}: {error}") from None
        eventually(lambda: self.partitions(topic) == 0, f"topic {topic} is gone")

    def delete_records(self, topic, before, partition=0):
        """Deletes the records of a partition whose offsets are below `before`."""
        place = self.lib.TopicPartition(topic, partition, before)
        try:
            self.admin.delete_records([place], request_timeout=15)[place].result()
        except self.lib.KafkaException as error:
            raise Failure(f"cannot delete records of {topic}: {error}") from None

    def producer(self, **config):
        return self.lib.Producer(self._config(**{"enable_idempotence": True, "linger_ms": 5, **config}))

    def produce(self, topic, values, partitions):
        """Stores `values` round-robin; returns {value: (partition, offset)} as the broker acknowledged them."""
        where, failed = {}, []

        def delivered(error, message):
            if error:
                failed.append(str(error))
            else:
                where[message.value()] = (message.partition(), message.offset())
        producer = self.producer()
        for index, value in enumerate(values):
            while True:
                try:
                    producer.produce(topic, value=value, partition=index % partitions, on_delivery=delivered)
                    break
                except BufferError:
                    producer.poll(0.1)
            producer.poll(0)
        if producer.flush(60) or failed:
            raise Failure(f"the broker did not store everything in {topic}: {failed[:1] or 'timeout'}")
        return where

    def store(self, topic, records, partition=0, **config):
        """Stores `records` in their order: bytes, None for a tombstone, or {value, key, headers, timestamp}."""
        failed = []

        def delivered(error, _message):
            if error:
                failed.append(str(error))
        producer = self.producer(**config)
        for record in records:
            fields = record if isinstance(record, dict) else {"value": record}
            producer.produce(topic, partition=partition, on_delivery=delivered, **fields)
        if producer.flush(60) or failed:
            raise Failure(f"the broker did not store everything in {topic}: {failed[:1] or 'timeout'}")

    def values(self, topic, count, seconds=30):
        """The first `count` records of partition 0, as the broker has them."""
        consumer = self.lib.Consumer(self._config(group_id="nobody", enable_auto_commit=False))
        consumer.assign([self.lib.TopicPartition(topic, 0, 0)])
        found = []

        def more():
            message = consumer.poll(0.2)
            if message is not None:
                if message.error():
                    raise Failure(str(message.error()))
                found.append(message)
            return len(found) >= count
        try:
            eventually(more, f"{count} records in {topic}", seconds, every=0)
            return found
        finally:
            consumer.close()

    def committed(self, group, topic, partitions):
        """{partition: committed offset} of the group; partitions without a commit are absent."""
        consumer = self.lib.Consumer(self._config(group_id=group, enable_auto_commit=False))
        asked = [self.lib.TopicPartition(topic, partition) for partition in range(partitions)]

        def ask():
            try:
                return consumer.committed(asked, timeout=10)
            except self.lib.KafkaException as error:  # a coordinator that still loads, for example
                raise Failure(str(error)) from None
        try:
            found = eventually(ask, f"the broker tells the committed offsets of {group}", every=0.2)
            return {each.partition: each.offset for each in found if each.offset >= 0}
        finally:
            consumer.close()
