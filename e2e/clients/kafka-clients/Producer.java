// Kafka's own Java client, which writes Avro as Confluent's serializer does: a zero, the schema's id in four bytes,
// and the value in binary. It prints `stored <partition> <offset>` for each record, in their order.

import java.io.ByteArrayOutputStream;
import java.io.DataOutputStream;
import java.math.BigDecimal;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.time.Instant;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.concurrent.Future;
import org.apache.avro.Conversions;
import org.apache.avro.Schema;
import org.apache.avro.data.TimeConversions;
import org.apache.avro.generic.GenericData;
import org.apache.avro.generic.GenericDatumWriter;
import org.apache.avro.generic.GenericRecord;
import org.apache.avro.io.BinaryEncoder;
import org.apache.avro.io.EncoderFactory;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerConfig;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.clients.producer.RecordMetadata;
import org.apache.kafka.common.serialization.ByteArraySerializer;
import org.apache.kafka.common.serialization.StringSerializer;

public class Producer {
    public static void main(String[] arguments) throws Exception {
        Schema schema = new Schema.Parser().parse(System.getenv("SCHEMA"));
        int id = Integer.parseInt(System.getenv("SCHEMA_ID"));
        int count = Integer.parseInt(System.getenv("COUNT"));
        GenericData data = new GenericData();
        data.addLogicalTypeConversion(new Conversions.DecimalConversion());
        data.addLogicalTypeConversion(new TimeConversions.TimestampMicrosConversion());

        Properties settings = new Properties();
        settings.put(ProducerConfig.BOOTSTRAP_SERVERS_CONFIG, System.getenv("BOOTSTRAP"));
        settings.put(ProducerConfig.COMPRESSION_TYPE_CONFIG, System.getenv("COMPRESSION"));
        settings.put(ProducerConfig.LINGER_MS_CONFIG, "20");
        settings.put(ProducerConfig.DELIVERY_TIMEOUT_MS_CONFIG, "60000");
        settings.put(ProducerConfig.REQUEST_TIMEOUT_MS_CONFIG, "20000");
        List<Future<RecordMetadata>> sent = new ArrayList<>();
        try (var producer = new KafkaProducer<>(settings, new StringSerializer(), new ByteArraySerializer())) {
            for (int number = 0; number < count; number++) {
                var record = new ProducerRecord<>(System.getenv("TOPIC"), null, 1_700_000_000_000L + number,
                    "key-" + number, framed(id, value(schema, number), data));
                record.headers().add("number", Integer.toString(number).getBytes(StandardCharsets.UTF_8));
                sent.add(producer.send(record));
            }
        }
        for (var each : sent) {
            System.out.println("stored " + each.get().partition() + " " + each.get().offset());
        }
    }

    static GenericRecord value(Schema schema, int number) {
        GenericRecord value = new GenericData.Record(schema);
        value.put("id", Long.MAX_VALUE - number);
        value.put("name", "Zoë " + number);
        Schema states = schema.getField("state").schema();
        value.put("state", new GenericData.EnumSymbol(states, number % 2 == 0 ? "NEW" : "PAID"));
        value.put("price", new BigDecimal("123456789012.3400").add(new BigDecimal(number)));
        value.put("at", Instant.ofEpochSecond(1_700_000_000L, 123_456_000L).plusSeconds(number));
        value.put("note", number % 3 == 0 ? null : "note " + number);
        value.put("tags", List.of("a", "b" + number));
        value.put("stock", Map.of("left", (long) number));
        value.put("data", ByteBuffer.wrap(new byte[] {0, (byte) number, (byte) 0xff}));
        return value;
    }

    static byte[] framed(int id, GenericRecord value, GenericData data) throws Exception {
        ByteArrayOutputStream bytes = new ByteArrayOutputStream();
        DataOutputStream frame = new DataOutputStream(bytes);
        frame.writeByte(0);
        frame.writeInt(id);
        frame.flush();
        BinaryEncoder encoder = EncoderFactory.get().binaryEncoder(bytes, null);
        new GenericDatumWriter<GenericRecord>(value.getSchema(), data).write(value, encoder);
        encoder.flush();
        return bytes.toByteArray();
    }
}
