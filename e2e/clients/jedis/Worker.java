// Jedis with its default options: the scenario of e2e/README.md.
// A consumer pins its connection (the class Jedis is one connection); producing goes through the pooled client.

import java.util.ArrayList;
import java.util.List;
import java.util.Objects;
import java.util.stream.Collectors;
import org.json.JSONObject;
import redis.clients.jedis.DefaultJedisClientConfig;
import redis.clients.jedis.HostAndPort;
import redis.clients.jedis.Jedis;
import redis.clients.jedis.Protocol;
import redis.clients.jedis.RedisClient;
import redis.clients.jedis.util.SafeEncoder;

public class Worker {
    static final int PORT = Integer.parseInt(System.getenv("KARROW_PORT"));
    static final String TOPIC = System.getenv("TOPIC");
    static final String NAME = System.getenv("GROUP") + ":jedis";

    static Jedis connect() {
        return new Jedis(new HostAndPort("127.0.0.1", PORT),
            DefaultJedisClientConfig.builder().clientName(NAME).build());
    }

    record Check(String what, Object got, Object want) {}

    /** Prints one result line. */
    static void step(String name, Check... checks) {
        String wrong = List.of(checks).stream().filter(c -> !Objects.equals(c.got, c.want))
            .map(c -> c.what + ": got " + c.got + ", want " + c.want).collect(Collectors.joining("; "));
        System.out.println(wrong.isEmpty() ? "ok " + name : "not ok " + name + " " + wrong);
    }

    /** rafka's eight elements: Jedis's own blpop casts everything to bytes, so the raw command it is. */
    static List<Object> pop(Jedis jedis) {
        List<Object> plain = new ArrayList<>();
        for (Object each : (List<?>) jedis.sendBlockingCommand(Protocol.Command.BLPOP, "topics:" + TOPIC, "10")) {
            plain.add(each instanceof byte[] bytes ? SafeEncoder.encode(bytes) : each);
        }
        return plain;
    }

    static List<Object> message(long offset, String value) {
        return List.of("topic", TOPIC, "partition", 0L, "offset", offset, "value", value);
    }

    static String fields(String text) {
        JSONObject json = new JSONObject(text);
        return json.getString("topic") + " " + json.getInt("partition") + " " + json.getLong("offset") + " "
            + json.optString("key", "-") + " " + json.getString("value");
    }

    public static void main(String[] arguments) {
        String topics = "topics:" + TOPIC, json = "json:" + TOPIC;
        Jedis consumer = connect();
        step("connect", new Check("CLIENT GETNAME", consumer.clientGetname(), NAME));

        try (RedisClient pool = RedisClient.create("127.0.0.1", PORT)) {
            step("produce", new Check("RPUSH", pool.rpush(topics, "m0", "m1"), 2L),
                new Check("RPUSHX", pool.rpushx(topics + ":user:2", "m2"), 1L),
                new Check("RPUSH", pool.rpush(topics, "m3"), 1L), new Check("RPUSH", pool.rpush(topics, "m4"), 1L));
        }
        step("consume", new Check("BLPOP topics:", pop(consumer), message(0, "m0")));
        var pair = consumer.blpop(10.0, json);
        step("json", new Check("key", pair.getKey(), json),
            new Check("message", fields(pair.getValue()), TOPIC + " 0 1 - m1"));
        step("ack", new Check("ack", consumer.rpush("acks", TOPIC + ":0:1"), 1L),
            new Check("late ack", consumer.rpush("acks", TOPIC + ":0:0"), 0L));
        step("lpop", new Check("message", fields(consumer.lpop(json)), TOPIC + " 0 2 user:2 m2"));
        try (Jedis other = connect()) {
            step("ack-elsewhere", new Check("ack", other.rpush("acks", TOPIC + ":0:2"), 1L));
        }
        List<String> drained = consumer.lpop(json, 10).stream().map(Worker::fields).collect(Collectors.toList());
        step("timeout", new Check("LPOP json: 10", drained, List.of(TOPIC + " 0 3 - m3", TOPIC + " 0 4 - m4")),
            new Check("BLPOP", consumer.blpop(1.0, json), null), new Check("BLPOP(int)", consumer.blpop(1, json), null),
            new Check("LPOP", consumer.lpop(json), null));

        consumer.close();
        consumer = connect();
        List<Object> first = pop(consumer), second = pop(consumer);
        step("resume-unacked", new Check("first", first, message(3, "m3")),
            new Check("second", second, message(4, "m4")),
            new Check("ack", consumer.rpush("acks", TOPIC + ":0:4"), 1L));
        consumer.close();
        consumer = connect();
        consumer.rpush(topics, "m5");
        step("resume-acked",
            new Check("next, by blpop(int)", fields(consumer.blpop(10, json).get(1)), TOPIC + " 0 5 - m5"),
            new Check("ack", consumer.rpush("acks", TOPIC + ":0:5"), 1L));
        consumer.close();
    }
}
