// kafkajs and its client of Confluent's schema registry: plain JSON to one topic, Avro to another.
// It prints `done` when everything is stored.
const { Kafka, logLevel } = require("kafkajs");
const { SchemaRegistry, SchemaType } = require("@kafkajs/confluent-schema-registry");

const { BOOTSTRAP, JSON_TOPIC, AVRO_TOPIC, REGISTRY, COUNT } = process.env;
const numbers = Array.from({ length: Number(COUNT) }, (_, number) => number);

async function main() {
  const producer = new Kafka({ clientId: "e2e", brokers: [BOOTSTRAP], logLevel: logLevel.ERROR }).producer();
  await producer.connect();
  await producer.send({
    topic: JSON_TOPIC,
    messages: numbers.map((number) => ({
      key: `key-${number}`,
      value: JSON.stringify({ number, half: number / 2, name: `Zoë ${number}`, deep: { list: [number, null] } }),
      headers: { number: String(number) },
    })),
  });
  const registry = new SchemaRegistry({ host: REGISTRY });
  const schema = JSON.stringify({
    type: "record", namespace: "shop", name: "Reading",
    fields: [
      { name: "number", type: "int" },
      { name: "half", type: "double" },
      { name: "name", type: "string" },
      { name: "note", type: ["null", "string"], default: null },
    ],
  });
  const { id } = await registry.register({ type: SchemaType.AVRO, schema }, { subject: `${AVRO_TOPIC}-value` });
  const messages = await Promise.all(numbers.map(async (number) => ({
    value: await registry.encode(id, {
      number, half: number / 2, name: `Zoë ${number}`, note: number % 2 ? "odd" : null,
    }),
  })));
  await producer.send({ topic: AVRO_TOPIC, messages });
  await producer.disconnect();
  console.log("done");
}

main().catch((error) => { console.error(error); process.exit(1); });
