// node-redis (npm `redis`) with its default options: the scenario of e2e/README.md.
const { isDeepStrictEqual: equal } = require("node:util");
const { createClient } = require("redis");

const { KARROW_PORT, TOPIC, GROUP } = process.env;
const NAME = `${GROUP}:node-redis`;
const URL = `redis://127.0.0.1:${KARROW_PORT}`;
const connect = () => createClient({ url: URL, name: NAME }).connect();

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
  let consumer = await connect();
  // Its blPop keeps two elements of a reply, so rafka's eight come through sendCommand.
  const pop = () => consumer.sendCommand(["BLPOP", `topics:${TOPIC}`, "10"]);
  step("connect", ["CLIENT GETNAME", await consumer.clientGetName(), NAME]);

  const producer = await createClient({ url: URL }).connect();
  const stored = await Promise.all([
    producer.rPush(`topics:${TOPIC}`, ["m0", "m1"]),
    producer.rPushX(`topics:${TOPIC}:user:2`, "m2"),
    producer.rPush(`topics:${TOPIC}`, "m3"),
  ]);
  const transaction = await producer.multi().rPush(`topics:${TOPIC}`, "m4").exec();
  step("produce", ["RPUSH and RPUSHX", stored, [2, 1, 1]], ["multi", transaction, [1]]);

  step("consume", ["BLPOP topics:", await pop(), record(0, "m0")]);
  const { key, element } = await consumer.blPop(`json:${TOPIC}`, 10);
  step("json", ["key", key, `json:${TOPIC}`], ["message", fields(element), [TOPIC, 0, 1, null, "m1"]]);
  step("ack", ["ack", await consumer.rPush("acks", `${TOPIC}:0:1`), 1],
    ["late ack", await consumer.rPush("acks", `${TOPIC}:0:0`), 0]);
  step("lpop", ["message", fields(await consumer.lPop(`json:${TOPIC}`)), [TOPIC, 0, 2, "user:2", "m2"]]);
  const other = await connect();
  step("ack-elsewhere", ["ack", await other.rPush("acks", `${TOPIC}:0:2`), 1]);
  other.destroy();
  const drained = (await consumer.lPopCount(`json:${TOPIC}`, 10)).map((text) => fields(text)[4]);
  step("timeout", ["LPOP json: 10", drained, ["m3", "m4"]],
    ["BLPOP", await consumer.blPop(`json:${TOPIC}`, 1), null], ["LPOP", await consumer.lPop(`json:${TOPIC}`), null]);

  consumer.destroy();
  consumer = await connect();
  const again = [await pop(), await pop()];
  step("resume-unacked", ["unacked", again, [record(3, "m3"), record(4, "m4")]],
    ["ack", await consumer.rPush("acks", `${TOPIC}:0:4`), 1]);
  await consumer.close();
  consumer = await connect();
  await consumer.rPush(`topics:${TOPIC}`, "m5");
  const next = await consumer.blPop(`json:${TOPIC}`, 10);
  step("resume-acked", ["next", fields(next.element), [TOPIC, 0, 5, null, "m5"]],
    ["ack", await consumer.rPush("acks", `${TOPIC}:0:5`), 1]);
  await consumer.close();
  await producer.close();
}

main().catch((error) => { console.error(error); process.exit(1); });
