// go-redis with its default options: the scenario of e2e/README.md.
// The client is a pool: a consumer pops on a connection of its own (client.Conn), acks may use any.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"reflect"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

var (
	background = context.Background()
	address    = "127.0.0.1:" + os.Getenv("KARROW_PORT")
	topic      = os.Getenv("TOPIC")
	name       = os.Getenv("GROUP") + ":go-redis"
)

type check struct {
	what      string
	got, want any
}

// step prints one result line.
func step(name string, checks ...check) {
	var wrong []string
	for _, c := range checks {
		if !reflect.DeepEqual(c.got, c.want) {
			wrong = append(wrong, fmt.Sprintf("%s: got %#v, want %#v", c.what, c.got, c.want))
		}
	}
	if wrong == nil {
		fmt.Println("ok", name)
	} else {
		fmt.Println("not ok", name, strings.Join(wrong, "; "))
	}
}

// must gives the value, or the error in its place so that the check shows it.
func must[T any](value T, err error) any {
	if err != nil {
		return err.Error()
	}
	return value
}

func message(offset int64, value string) any {
	return []any{"topic", topic, "partition", int64(0), "offset", offset, "value", value}
}

// pop asks for rafka's eight elements. Do reads with the default timeout of 3 s, so it waits for less, several times.
func pop(conn *redis.Conn) any {
	for range 8 {
		reply, err := conn.Do(background, "BLPOP", "topics:"+topic, 2).Slice()
		if err != redis.Nil {
			return must(reply, err)
		}
	}
	return "nothing"
}

func fields(text string) string {
	var m struct {
		Topic             string
		Partition, Offset int64
		Key, Value        *string
	}
	if err := json.Unmarshal([]byte(text), &m); err != nil || m.Value == nil {
		return fmt.Sprintf("%v in %q", err, text)
	}
	key := "-"
	if m.Key != nil {
		key = *m.Key
	}
	return fmt.Sprintf("%s %d %d %s %s", m.Topic, m.Partition, m.Offset, key, *m.Value)
}

func messageIn(text string, err error) any {
	if err != nil {
		return err.Error()
	}
	return fields(text)
}

func pair(reply []string, err error) any {
	if err != nil || len(reply) != 2 {
		return fmt.Sprintf("%v %v", reply, err)
	}
	return reply[0] + " " + fields(reply[1])
}

func main() {
	client := redis.NewClient(&redis.Options{Addr: address, ClientName: name})
	conn := client.Conn()
	topics, jsonKey := "topics:"+topic, "json:"+topic
	step("connect", check{"CLIENT GETNAME", must(conn.ClientGetName(background).Result()), name})

	producer := redis.NewClient(&redis.Options{Addr: address})
	pipeline := producer.TxPipeline()
	pipeline.RPush(background, topics, "m0", "m1")
	pipeline.RPushX(background, topics+":user:2", "m2")
	commands, err := pipeline.Exec(background)
	var stored []int64
	for _, command := range commands {
		stored = append(stored, command.(*redis.IntCmd).Val())
	}
	step("produce", check{"TxPipeline", must(stored, err), []int64{2, 1}},
		check{"RPUSH", must(producer.RPush(background, topics, "m3").Result()), int64(1)},
		check{"RPUSH", must(producer.RPush(background, topics, "m4").Result()), int64(1)})

	step("consume", check{"BLPOP topics:", pop(conn), message(0, "m0")})
	step("json", check{"BLPOP json:", pair(conn.BLPop(background, 10*time.Second, jsonKey).Result()),
		jsonKey + " " + topic + " 0 1 - m1"})
	step("ack", check{"ack", must(conn.RPush(background, "acks", topic+":0:1").Result()), int64(1)},
		check{"late ack", must(conn.RPush(background, "acks", topic+":0:0").Result()), int64(0)})
	step("lpop", check{"message", messageIn(conn.LPop(background, jsonKey).Result()), topic + " 0 2 user:2 m2"})
	step("ack-elsewhere", check{"ack by the pool", must(client.RPush(background, "acks", topic+":0:2").Result()), int64(1)})
	drained, err := conn.LPopCount(background, jsonKey, 10).Result()
	var values []string
	for _, text := range drained {
		values = append(values, fields(text))
	}
	_, blpop := conn.BLPop(background, time.Second, jsonKey).Result()
	_, lpop := conn.LPop(background, jsonKey).Result()
	step("timeout", check{"LPOP json: 10", must(values, err), []string{topic + " 0 3 - m3", topic + " 0 4 - m4"}},
		check{"BLPOP", blpop, redis.Nil}, check{"LPOP", lpop, redis.Nil})

	reconnect := func() {
		conn.Close()   // back into the pool,
		client.Close() // and the pool with its connections gone
		client = redis.NewClient(&redis.Options{Addr: address, ClientName: name})
		conn = client.Conn()
	}
	reconnect()
	step("resume-unacked", check{"first", pop(conn), message(3, "m3")}, check{"second", pop(conn), message(4, "m4")},
		check{"ack", must(client.RPush(background, "acks", topic+":0:4").Result()), int64(1)})
	reconnect()
	step("resume-acked", check{"RPUSH", must(client.RPush(background, topics, "m5").Result()), int64(1)},
		check{"next", pair(conn.BLPop(background, 10*time.Second, jsonKey).Result()), jsonKey + " " + topic + " 0 5 - m5"},
		check{"ack", must(conn.RPush(background, "acks", topic+":0:5").Result()), int64(1)})
	conn.Close()
	client.Close()
	producer.Close()
}
