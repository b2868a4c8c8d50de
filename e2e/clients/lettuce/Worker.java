// Lettuce with its default options: the scenario of e2e/README.md.
// One StatefulRedisConnection is one connection, so a consumer is pinned by itself.

import io.lettuce.core.KeyValue;
import io.lettuce.core.RedisClient;
import io.lettuce.core.RedisURI;
import io.lettuce.core.api.StatefulRedisConnection;
import io.lettuce.core.api.sync.RedisCommands;
import io.lettuce.core.codec.StringCodec;
import io.lettuce.core.output.NestedMultiOutput;
import io.lettuce.core.protocol.CommandArgs;
import io.lettuce.core.protocol.CommandType;
import java.util.List;
import java.util.Objects;
import java.util.stream.Collectors;

public class Worker {
    static final int PORT = Integer.parseInt(System.getenv("KARROW_PORT"));
    static final String TOPIC = System.getenv("TOPIC");
    static final String NAME = System.getenv("GROUP") + ":lettuce";

    record Check(String what, Object got, Object want) {}

    /** Prints one result line. */
    static void step(String name, Check... checks) {
        String wrong = List.of(checks).stream().filter(c -> !Objects.equals(c.got, c.want))
            .map(c -> c.what + ": got " + c.got + ", want " + c.want).collect(Collectors.joining("; "));
        System.out.println(wrong.isEmpty() ? "ok " + name : "not ok " + name + " " + wrong);
    }

    /** rafka's eight elements: Lettuce's own blpop throws at integers, so the raw command it is. */
    static List<Object> pop(RedisCommands<String, String> redis) {
        return redis.dispatch(CommandType.BLPOP, new NestedMultiOutput<>(StringCodec.UTF8),
            new CommandArgs<>(StringCodec.UTF8).addKey("topics:" + TOPIC).add(10));
    }

    static List<Object> message(long offset, String value) {
        return List.of("topic", TOPIC, "partition", 0L, "offset", offset, "value", value);
    }

    /** Whether a karrow JSON text holds these fields; there is no JSON parser among Lettuce's dependencies. */
    static boolean says(String text, long offset, String key, String value) {
        String flat = text.replace(" ", "");
        return flat.startsWith("{") && flat.contains("\"topic\":\"" + TOPIC + "\"") && flat.contains("\"partition\":0,")
            && flat.contains("\"offset\":" + offset + ",") && flat.contains("\"value\":\"" + value + "\"")
            && flat.contains("\"key\":" + (key == null ? "null" : "\"" + key + "\""));
    }

    static Check holds(String text, long offset, String key, String value) {
        return new Check("offset " + offset + " in " + text, says(text, offset, key, value), true);
    }

    public static void main(String[] arguments) {
        String topics = "topics:" + TOPIC, json = "json:" + TOPIC;
        RedisClient named = RedisClient.create(
            RedisURI.builder().withHost("127.0.0.1").withPort(PORT).withClientName(NAME).build());
        RedisClient nameless = RedisClient.create(RedisURI.create("127.0.0.1", PORT));

        StatefulRedisConnection<String, String> connection = named.connect();
        RedisCommands<String, String> consumer = connection.sync();
        step("connect", new Check("CLIENT GETNAME", consumer.clientGetname(), NAME));

        RedisCommands<String, String> producer = nameless.connect().sync();
        step("produce", new Check("RPUSH", producer.rpush(topics, "m0", "m1"), 2L),
            new Check("RPUSHX", producer.rpushx(topics + ":user:2", "m2"), 1L),
            new Check("RPUSH", producer.rpush(topics, "m3"), 1L), new Check("RPUSH", producer.rpush(topics, "m4"), 1L));

        step("consume", new Check("BLPOP topics:", pop(consumer), message(0, "m0")));
        KeyValue<String, String> pair = consumer.blpop(10, json);
        step("json", new Check("key", pair.getKey(), json), holds(pair.getValue(), 1, null, "m1"));
        step("ack", new Check("ack", consumer.rpush("acks", TOPIC + ":0:1"), 1L),
            new Check("late ack", consumer.rpush("acks", TOPIC + ":0:0"), 0L));
        step("lpop", holds(consumer.lpop(json), 2, "user:2", "m2"));
        try (var other = named.connect()) {
            step("ack-elsewhere", new Check("ack", other.sync().rpush("acks", TOPIC + ":0:2"), 1L));
        }
        List<String> drained = consumer.lpop(json, 10);
        step("timeout", new Check("LPOP json: 10", drained.size(), 2), holds(drained.get(0), 3, null, "m3"),
            holds(drained.get(1), 4, null, "m4"), new Check("BLPOP", consumer.blpop(1, json), null),
            new Check("LPOP", consumer.lpop(json), null));

        connection.close();
        connection = named.connect();
        consumer = connection.sync();
        List<Object> first = pop(consumer), second = pop(consumer);
        step("resume-unacked", new Check("first", first, message(3, "m3")),
            new Check("second", second, message(4, "m4")),
            new Check("ack", consumer.rpush("acks", TOPIC + ":0:4"), 1L));
        connection.close();
        connection = named.connect();
        consumer = connection.sync();
        consumer.rpush(topics, "m5");
        step("resume-acked", holds(consumer.blpop(10.0, json).getValue(), 5, null, "m5"),
            new Check("ack", consumer.rpush("acks", TOPIC + ":0:5"), 1L));
        connection.close();
        named.shutdown();
        nameless.shutdown();
    }
}
