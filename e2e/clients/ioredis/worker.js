// ioredis with its default options: the scenario of e2e/README.md.
const { isDeepStrictEqual: equal } = require("node:util");
const Redis = require("ioredis");

const { KARROW_PORT, TOPIC, GROUP } = process.env;
const NAME = `${GROUP}:ioredis`;
const connect = () => new Redis(Number(KARROW_PORT), "127.0.0.1", { connectionName: NAME });

// One result line; each check is [what, got, want].
function step(name, ...checks) {
  const wrong = checks
    .filter(([, got, want]) => !equal(got, want))
    .map(([what, got, want]) => `${what}: got ${JSON.stringify(got)}, want ${JSON.stringify(want)}`);
  console.log(wrong.length ? `not ok ${name} ${wrong.join("; ")}` : `ok ${name}`);
}
const record = (offset, value) => ["topic", TOPIC, "partition", 0, "offset", offset, "value", value];
const fields = (text) => {
  const { topic, partition, offset, key, value } = JSON.parse(text);
  return [topic, partition, offset, key, value];
};

async function main() {
  let consumer = connect();
  step("connect", ["CLIENT GETNAME", await consumer.client("GETNAME"), NAME]);

  const producer = new Redis(Number(KARROW_PORT), "127.0.0.1");
  const stored = await Promise.all([
    producer.rpush(`topics:${TOPIC}`, "m0", "m1"),
    producer.rpushx(`topics:${TOPIC}:user:2`, "m2"),
    producer.rpush(`topics:${TOPIC}`, "m3"),
  ]);
  const transaction = await producer.multi().rpush(`topics:${TOPIC}`, "m4").exec();
  step("produce", ["RPUSH and RPUSHX", stored, [2, 1, 1]], ["multi", transaction, [[null, 1]]]);

  step("consume", ["BLPOP topics:", await consumer.call("BLPOP", `topics:${TOPIC}`, 10), record(0, "m0")]);
  const [key, message] = await consumer.blpop(`json:${TOPIC}`, 10);
  step("json", ["key", key, `json:${TOPIC}`], ["message", fields(message), [TOPIC, 0, 1, null, "m1"]]);
  step("ack", ["ack", await consumer.rpush("acks", `${TOPIC}:0:1`), 1],
    ["late ack", await consumer.rpush("acks", `${TOPIC}:0:0`), 0]);
  step("lpop", ["message", fields(await consumer.lpop(`json:${TOPIC}`)), [TOPIC, 0, 2, "user:2", "m2"]]);
  const other = connect();
  step("ack-elsewhere", ["ack", await other.rpush("acks", `${TOPIC}:0:2`), 1]);
  other.disconnect();
  const drained = (await consumer.lpop(`json:${TOPIC}`, 10)).map((text) => fields(text)[4]);
  step("timeout", ["LPOP json: 10", drained, ["m3", "m4"]],
    ["BLPOP", await consumer.blpop(`json:${TOPIC}`, 1), null], ["LPOP", await consumer.lpop(`json:${TOPIC}`), null]);

  consumer.disconnect();
  consumer = connect();
  const again = [await consumer.blpop(`topics:${TOPIC}`, 10), await consumer.blpop(`topics:${TOPIC}`, 10)];
  step("resume-unacked", ["unacked", again, [record(3, "m3"), record(4, "m4")]],
    ["ack", await consumer.rpush("acks", `${TOPIC}:0:4`), 1]);
  await consumer.quit();
  consumer = connect();
  await consumer.rpush(`topics:${TOPIC}`, "m5");
  const [, next] = await consumer.blpop(`json:${TOPIC}`, 10);
  step("resume-acked", ["next", fields(next), [TOPIC, 0, 5, null, "m5"]],
    ["ack", await consumer.rpush("acks", `${TOPIC}:0:5`), 1]);
  await consumer.quit();
  await producer.quit();
}

main().catch((error) => { console.error(error); process.exit(1); });
