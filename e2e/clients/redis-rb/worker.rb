# redis-rb (Debian's ruby-redis) with its default options: the scenario of e2e/README.md.
require "json"
require "redis"

PORT = Integer(ENV.fetch("KARROW_PORT"))
TOPIC = ENV.fetch("TOPIC")
NAME = "#{ENV.fetch('GROUP')}:redis-rb"
$stdout.sync = true

def connect
  Redis.new(port: PORT, id: NAME)
end

# One result line; each check is [what, got, want].
def step(name, *checks)
  wrong = checks.reject { |_, got, want| got == want }
                .map { |what, got, want| "#{what}: got #{got.inspect}, want #{want.inspect}" }
  puts wrong.empty? ? "ok #{name}" : "not ok #{name} #{wrong.join('; ')}"
end

def record(offset, value)
  ["topic", TOPIC, "partition", 0, "offset", offset, "value", value]
end

def fields(text)
  JSON.parse(text).values_at("topic", "partition", "offset", "key", "value")
end

consumer = connect
step "connect", ["CLIENT GETNAME", consumer.client(:getname), NAME]

producer = Redis.new(port: PORT)
step "produce",
     ["RPUSH", producer.rpush("topics:#{TOPIC}", %w[m0 m1]), 2],
     ["RPUSHX", producer.rpushx("topics:#{TOPIC}:user:2", "m2"), 1],
     ["pipelined", producer.pipelined { |p| %w[m3 m4].each { |m| p.rpush("topics:#{TOPIC}", m) } }, [1, 1]]

# Its own blpop hands an array of any length through, and stretches the read timeout by what it waits.
step "consume", ["BLPOP topics:", consumer.blpop("topics:#{TOPIC}", timeout: 10), record(0, "m0")]
key, message = consumer.blpop("json:#{TOPIC}", timeout: 10)
step "json", ["key", key, "json:#{TOPIC}"], ["message", fields(message), [TOPIC, 0, 1, nil, "m1"]]
step "ack", ["ack", consumer.rpush("acks", "#{TOPIC}:0:1"), 1], ["late ack", consumer.rpush("acks", "#{TOPIC}:0:0"), 0]
step "lpop", ["message", fields(consumer.lpop("json:#{TOPIC}")), [TOPIC, 0, 2, "user:2", "m2"]]
other = connect
step "ack-elsewhere", ["ack", other.rpush("acks", "#{TOPIC}:0:2"), 1]
other.close
drained = consumer.lpop("json:#{TOPIC}", 10).map { |text| fields(text).last }
step "timeout", ["LPOP json: 10", drained, %w[m3 m4]],
     ["BLPOP", consumer.blpop("json:#{TOPIC}", timeout: 1), nil], ["LPOP", consumer.lpop("json:#{TOPIC}"), nil]

consumer.close
consumer = connect
again = Array.new(2) { consumer.blpop("topics:#{TOPIC}", timeout: 10) }
step "resume-unacked", ["unacked", again, [record(3, "m3"), record(4, "m4")]],
     ["ack", consumer.rpush("acks", "#{TOPIC}:0:4"), 1]
consumer.close
consumer = connect
consumer.rpush("topics:#{TOPIC}", "m5")
step "resume-acked", ["next", fields(consumer.blpop("json:#{TOPIC}", timeout: 10).last), [TOPIC, 0, 5, nil, "m5"]],
     ["ack", consumer.rpush("acks", "#{TOPIC}:0:5"), 1]
consumer.quit
