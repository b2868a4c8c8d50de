<?php
// phpredis (Debian php-redis) with its default options: the scenario of e2e/README.md.

$topic = getenv("TOPIC");
$name = getenv("GROUP") . ":phpredis";

function connect(): Redis
{
    global $name;
    $redis = new Redis();
    $redis->connect("127.0.0.1", (int) getenv("KARROW_PORT"));
    $redis->client("setname", $name);
    return $redis;
}

function produce_all(Redis $redis, string $topics): array
{
    $pipelined = $redis->pipeline()->rPush($topics, "m0", "m1")->rPushx("$topics:user:2", "m2")->exec();
    $atomic = $redis->multi()->rPush($topics, "m3")->rPush($topics, "m4")->exec();
    return [$pipelined, $atomic];
}

function raw(Redis $redis, ...$command)
{
    return $redis->rawCommand(...$command);
}

// One result line; each check is [what, got, want].
function step(string $name, array ...$checks): void
{
    $wrong = [];
    foreach ($checks as [$what, $got, $want]) {
        if ($got !== $want) {
            $wrong[] = "$what: got " . json_encode($got) . ", want " . json_encode($want);
        }
    }
    echo $wrong ? "not ok $name " . implode("; ", $wrong) : "ok $name", "\n";
}

function record(int $offset, string $value): array
{
    global $topic;
    return ["topic", $topic, "partition", 0, "offset", $offset, "value", $value];
}

function fields(string $text): array
{
    $message = json_decode($text, true, 512, JSON_THROW_ON_ERROR);
    return array_map(fn ($field) => $message[$field], ["topic", "partition", "offset", "key", "value"]);
}

$consumer = connect();
step("connect", ["CLIENT GETNAME", $consumer->client("getname"), $name]);

$producer = new Redis(); $producer->connect("127.0.0.1", (int) getenv("KARROW_PORT"));
step("produce", ["pipeline and transaction", produce_all($producer, "topics:$topic"), [[2, 1], [1, 1]]]);

step("consume", ["BLPOP topics:", raw($consumer, "BLPOP", "topics:$topic", "10"), record(0, "m0")]);
[$key, $message] = $consumer->blPop("json:$topic", 10);
step("json", ["key", $key, "json:$topic"], ["message", fields($message), [$topic, 0, 1, null, "m1"]]);
step("ack", ["ack", $consumer->rPush("acks", "$topic:0:1"), 1], ["late ack", $consumer->rPush("acks", "$topic:0:0"), 0]);
step("lpop", ["message", fields($consumer->lPop("json:$topic")), [$topic, 0, 2, "user:2", "m2"]]);
$other = connect();
step("ack-elsewhere", ["ack", $other->rPush("acks", "$topic:0:2"), 1]);
$other->close();
$drained = array_map(fn ($text) => fields($text)[4], raw($consumer, "LPOP", "json:$topic", "10"));
step("timeout", ["LPOP json: 10", $drained, ["m3", "m4"]],
    ["BLPOP", $consumer->blPop("json:$topic", 1), []], ["LPOP", $consumer->lPop("json:$topic"), false]);

$consumer->close();
$consumer = connect();
$first = raw($consumer, "BLPOP", "topics:$topic", "10");
$second = raw($consumer, "BLPOP", "topics:$topic", "10");
step("resume-unacked", ["unacked", [$first, $second], [record(3, "m3"), record(4, "m4")]],
    ["ack", $consumer->rPush("acks", "$topic:0:4"), 1]);
$consumer->close();
$consumer = connect();
$consumer->rPush("topics:$topic", "m5");
step("resume-acked", ["next", fields($consumer->blPop("json:$topic", 10)[1]), [$topic, 0, 5, null, "m5"]],
    ["ack", $consumer->rPush("acks", "$topic:0:5"), 1]);
$consumer->close();
