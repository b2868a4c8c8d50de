#!/usr/bin/env bash
# redis-cli with its default options: the scenario of e2e/README.md, typed into one redis-cli per connection.
set -u
topic=$TOPIC name="$GROUP:redis-cli"

connect() { coproc CLI { exec redis-cli -p "$KARROW_PORT" 2>&1; }; ask CLIENT SETNAME "$name"; }
disconnect() { local pid=$CLI_PID input=${CLI[1]}; eval "exec $input>&-"; wait "$pid"; }

# Sends one command; its reply, as redis-cli prints it into a pipe, is then in $reply (lines joined by |).
ask() {
    local mark="mark-$RANDOM-$RANDOM" line
    reply=
    printf '%s\nECHO %s\n' "$*" "$mark" >&"${CLI[1]}"
    while IFS= read -r -t 20 line <&"${CLI[0]}"; do
        [[ $line == "$mark" ]] && { reply=${reply%|}; return; }
        reply+="$line|"
    done
    reply="(no end of reply: ${reply})"
}

# step NAME: reports the result of the checks since the last step.
wrong=
step() { if [[ -z $wrong ]]; then echo "ok $1"; else echo "not ok $1 $wrong"; fi; wrong=; }
want() { [[ $reply == "$1" ]] || wrong+="[$2: got '$reply', want '$1'] "; }
# want_json OFFSET VALUE [KEY]: the reply ends in karrow's JSON object.
want_json() {
    local flat=${reply// /} part
    for part in "\"topic\":\"$topic\"" "\"offset\":$1," "\"value\":\"$2\"" ${3:+"\"key\":\"$3\""}; do
        [[ $flat == *"$part"* ]] || wrong+="[no $part in '$reply'] "
    done
}
record() { want "topic|$topic|partition|0|offset|$1|value|$2" "BLPOP topics:"; }

connect; want OK "CLIENT SETNAME"; ask CLIENT GETNAME; want "$name" "CLIENT GETNAME"; step connect

ask RPUSH "topics:$topic" m0 m1; want 2 RPUSH
ask RPUSHX "topics:$topic:user:2" m2; want 1 RPUSHX
ask RPUSH "topics:$topic" m3; want 1 RPUSH
reply=$(redis-cli -p "$KARROW_PORT" RPUSH "topics:$topic" m4); want 1 "RPUSH from the command line"; step produce

ask BLPOP "topics:$topic" 10; record 0 m0; step consume
ask BLPOP "json:$topic" 10; [[ $reply == "json:$topic|{"* ]] || wrong="[no pair: '$reply'] "; want_json 1 m1; step json
ask RPUSH acks "$topic:0:1"; want 1 ack; ask RPUSH acks "$topic:0:0"; want 0 "late ack"; step ack
ask LPOP "json:$topic"; [[ $reply == "{"* ]] || wrong="[no JSON alone: '$reply'] "; want_json 2 m2 user:2; step lpop
reply=$(printf 'CLIENT SETNAME %s\nRPUSH acks %s:0:2\n' "$name" "$topic" | redis-cli -p "$KARROW_PORT" | paste -sd'|')
want "OK|1" "ack on another connection"; step ack-elsewhere
ask LPOP "json:$topic"; want_json 3 m3; ask LPOP "json:$topic"; want_json 4 m4
ask BLPOP "json:$topic" 1; want "" "BLPOP of nothing"; ask LPOP "json:$topic"; want "" "LPOP of nothing"; step timeout

disconnect; connect
ask BLPOP "topics:$topic" 10; record 3 m3; ask BLPOP "topics:$topic" 10; record 4 m4
ask RPUSH acks "$topic:0:4"; want 1 ack; step resume-unacked
disconnect; connect
ask RPUSH "topics:$topic" m5; want 1 RPUSH; ask BLPOP "json:$topic" 10; want_json 5 m5
ask RPUSH acks "$topic:0:5"; want 1 ack; step resume-acked
disconnect

# RESP3 on request.
reply=$(redis-cli -3 -p "$KARROW_PORT" HGETALL stats | head -3 | cut -d' ' -f1 | paste -sd'|')
want "producer.unflushed.messages|producer.delivery.errors|producer.unknown.events" "HGETALL stats in RESP3"; step resp3
