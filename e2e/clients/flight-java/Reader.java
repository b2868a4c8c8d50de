// Arrow's own Flight client for Java with its default options: the scenario of e2e/README.md.

import java.io.InputStream;
import java.net.Socket;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import org.apache.arrow.flight.Criteria;
import org.apache.arrow.flight.FlightClient;
import org.apache.arrow.flight.FlightDescriptor;
import org.apache.arrow.flight.FlightInfo;
import org.apache.arrow.flight.FlightRuntimeException;
import org.apache.arrow.flight.FlightStatusCode;
import org.apache.arrow.flight.FlightStream;
import org.apache.arrow.flight.Location;
import org.apache.arrow.flight.Ticket;
import org.apache.arrow.memory.RootAllocator;
import org.apache.arrow.vector.FieldVector;
import org.apache.arrow.vector.types.pojo.Field;
import org.apache.arrow.vector.types.pojo.Schema;

public class Reader {
    static final String TOPIC = System.getenv("TOPIC");
    static FlightClient client;

    /** Prints one result line; `checks` are triples of what, got and want. */
    static void step(String name, Object... checks) {
        List<String> wrong = new ArrayList<>();
        for (int at = 0; at < checks.length; at += 3) {
            if (!Objects.equals(checks[at + 1], checks[at + 2])) {
                wrong.add(checks[at] + ": got " + checks[at + 1] + ", want " + checks[at + 2]);
            }
        }
        System.out.println(wrong.isEmpty() ? "ok " + name
            : "not ok " + name + " " + String.join("; ", wrong).replace('\n', ' '));
    }

    static FlightDescriptor path(String... names) {
        return FlightDescriptor.path(names);
    }

    static FlightDescriptor command(String fields) {
        return FlightDescriptor.command(("{\"topic\":\"" + TOPIC + "\"," + fields + "}").getBytes(StandardCharsets.UTF_8));
    }

    static FlightStream get(FlightDescriptor descriptor) {
        return client.getStream(client.getInfo(descriptor).getEndpoints().get(0).getTicket());
    }

    /** The values of a column; texts as strings, bytes as Latin-1. */
    static List<Object> column(FlightStream stream, String name) {
        FieldVector vector = stream.getRoot().getVector(name);
        List<Object> values = new ArrayList<>();
        for (int row = 0; row < stream.getRoot().getRowCount(); row++) {
            values.add(plain(vector.getObject(row)));
        }
        return values;
    }

    static Object plain(Object value) {
        if (value instanceof Map<?, ?> map) {
            Map<String, Object> fields = new java.util.TreeMap<>();
            map.forEach((name, one) -> fields.put(name.toString(), plain(one)));
            return fields;
        }
        if (value instanceof List<?> list) {
            List<Object> values = new ArrayList<>();
            list.forEach(one -> values.add(plain(one)));
            return values;
        }
        if (value instanceof byte[] bytes) {
            return new String(bytes, StandardCharsets.ISO_8859_1);
        }
        return value instanceof org.apache.arrow.vector.util.Text ? value.toString() : value;
    }

    static String metadata(FlightStream stream) {
        var buffer = stream.getLatestMetadata();
        byte[] bytes = new byte[(int) buffer.readableBytes()];
        buffer.getBytes(buffer.readerIndex(), bytes);
        return new String(bytes, StandardCharsets.UTF_8);
    }

    static FlightRuntimeException refused(Runnable call) {
        try {
            call.run();
            return null;
        } catch (FlightRuntimeException refused) {
            return refused;
        }
    }

    /** Stores a message as a Redis client does. */
    static String push(String message) throws Exception {
        try (Socket socket = new Socket("127.0.0.1", Integer.parseInt(System.getenv("KARROW_PORT")))) {
            String key = "topics:" + TOPIC;
            String request = "*3\r\n$5\r\nRPUSH\r\n$" + key.length() + "\r\n" + key + "\r\n$" + message.length() + "\r\n"
                + message + "\r\n";
            socket.getOutputStream().write(request.getBytes(StandardCharsets.UTF_8));
            InputStream in = socket.getInputStream();
            byte[] answer = new byte[100];
            return new String(answer, 0, in.read(answer), StandardCharsets.UTF_8).trim();
        }
    }

    static Object idOf(Object payload) {
        return payload == null ? null : ((Map<?, ?>) payload).get("id");
    }

    static Map<String, Object> fields(Object... pairs) {
        Map<String, Object> fields = new java.util.TreeMap<>();
        for (int at = 0; at < pairs.length; at += 2) {
            if (pairs[at + 1] != null) {
                fields.put((String) pairs[at], pairs[at + 1]);
            }
        }
        return fields;
    }

    public static void main(String[] arguments) throws Exception {
        var where = Location.forGrpcInsecure("127.0.0.1", Integer.parseInt(System.getenv("FLIGHT_PORT")));
        try (var allocator = new RootAllocator(); var connected = FlightClient.builder(allocator, where).build()) {
            client = connected;
            run();
        }
    }

    static void run() throws Exception {
        FlightInfo info = client.getInfo(path(TOPIC));
        Schema schema = info.getSchema();
        List<String> names = new ArrayList<>();
        schema.getFields().forEach(field -> names.add(field.getName()));
        List<String> types = new ArrayList<>();
        for (Field field : schema.findField("payload").getChildren()) {
            types.add(field.getName() + " " + field.getType());
        }
        step("info", "endpoints", info.getEndpoints().size(), 1,
            "columns", names, List.of("topic", "partition", "offset", "timestamp", "key", "headers", "payload", "error"),
            "payload", types, List.of(
                "id Int(64, true)", "price FloatingPoint(DOUBLE)", "name Utf8", "paid Bool", "tags List"));

        step("schema", "GetSchema", client.getSchema(path(TOPIC)).getSchema(), schema);

        long start = 1709251198500L;
        try (FlightStream stream = get(path(TOPIC))) {
            boolean first = stream.next();
            List<Object> payloads = column(stream, "payload");
            step("values", "next", first, true, "schema", stream.getSchema(), schema,
                "topic", column(stream, "topic"), List.of(TOPIC, TOPIC, TOPIC),
                "partition", column(stream, "partition"), List.of(0, 0, 0),
                "offset", column(stream, "offset"), List.of(0L, 1L, 2L),
                "timestamp", column(stream, "timestamp"), List.of(start, start + 1000, start + 2000),
                "key", column(stream, "key"), List.of("k\u00ff0", "k\u00ff1", "k\u00ff2"),
                "payload", payloads, Arrays.asList(
                    fields("id", (1L << 53) + 1, "price", 19.99, "name", "Zoë 𝄞", "paid", true, "tags", List.of("a", "")),
                    null,
                    fields("id", Long.MIN_VALUE, "price", 5.0, "paid", false, "tags", List.of())),
                "error", column(stream, "error"), Arrays.asList(null, null, null),
                "positions", metadata(stream), "{\"positions\":{\"0\":3}}",
                "more", stream.next(), false);
        }

        String range = "\"from\":{\"positions\":{\"0\":1}},\"layout\":\"flat\",\"columns\":[\"_offset\",\"id\"]";
        try (FlightStream stream = get(command(range))) {
            stream.next();
            step("range", "offset", column(stream, "_offset"), List.of(1L, 2L),
                "id", column(stream, "id"), Arrays.asList(null, Long.MIN_VALUE),
                "columns", stream.getSchema().getFields().size(), 2);
        }

        FlightRuntimeException unknown = refused(() -> client.getInfo(path(TOPIC + "-unknown")));
        FlightRuntimeException wrong = refused(() -> client.getInfo(command("\"form\":1")));
        FlightRuntimeException forged = refused(() -> {
            try (FlightStream stream = client.getStream(new Ticket("forged".getBytes(StandardCharsets.UTF_8)))) {
                stream.next();
            } catch (FlightRuntimeException error) {
                throw error;
            } catch (Exception error) {
                throw new IllegalStateException(error);
            }
        });
        step("errors", "unknown topic", unknown.status().code(), FlightStatusCode.NOT_FOUND,
            "its name", unknown.getMessage().contains(TOPIC + "-unknown"), true,
            "unknown field", wrong.status().code(), FlightStatusCode.INVALID_ARGUMENT,
            "its name", wrong.getMessage().contains("form"), true,
            "forged ticket", forged.status().code(), FlightStatusCode.INVALID_ARGUMENT);

        FlightStream stream = get(command("\"from\":\"earliest\",\"to\":\"follow\""));
        List<Object> ids = new ArrayList<>();
        List<String> answers = new ArrayList<>();
        String said = "";
        for (int number = -1; number < 3; number++) {
            if (number >= 0) {
                answers.add(push("{\"id\": " + number + ", \"name\": \"followed\"}"));
            }
            while (ids.size() < 4 + number && stream.next()) {
                column(stream, "payload").forEach(payload -> ids.add(idOf(payload)));
                said = metadata(stream);
            }
        }
        step("follow", "RPUSH", answers, List.of(":1", ":1", ":1"),
            "ids", ids, Arrays.asList((1L << 53) + 1, null, Long.MIN_VALUE, 0L, 1L, 2L),
            "positions", said, "{\"positions\":{\"0\":6}}");

        List<String> listed = new ArrayList<>();
        for (FlightInfo flight : client.listFlights(new Criteria(TOPIC.getBytes(StandardCharsets.UTF_8)))) {
            listed.add(String.join("/", flight.getDescriptor().getPath()));
        }
        step("list", "flights", listed, List.of(TOPIC));

        stream.cancel("enough", null);
        FlightRuntimeException cancelled = refused(() -> {
            while (stream.next()) {
                // What was under way.
            }
        });
        step("cancel", "code", cancelled == null ? null : cancelled.status().code(), FlightStatusCode.CANCELLED);
        stream.close();
    }
}
