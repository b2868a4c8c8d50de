// arrow-go's Flight client with its default options, gRPC's limit of 4 MB a message among them: the scenario of
// e2e/README.md. With the argument `history` it reads the whole topic {"n": …, "text": …} and counts.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/flight"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

var (
	topic  = os.Getenv("TOPIC")
	client flight.Client
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
		fmt.Println("not ok", name, strings.ReplaceAll(strings.Join(wrong, "; "), "\n", " "))
	}
}

// value is one value of an array, as what Go has for it.
func value(of arrow.Array, row int) any {
	if of.IsNull(row) {
		return nil
	}
	switch of := of.(type) {
	case *array.Int32:
		return of.Value(row)
	case *array.Int64:
		return of.Value(row)
	case *array.Float64:
		return of.Value(row)
	case *array.Boolean:
		return of.Value(row)
	case *array.String:
		return of.Value(row)
	case *array.Binary:
		return string(of.Value(row))
	case *array.Timestamp:
		return int64(of.Value(row))
	case *array.List:
		begin, end := of.ValueOffsets(row)
		values := []any{}
		for at := begin; at < end; at++ {
			values = append(values, value(of.ListValues(), int(at)))
		}
		return values
	case *array.Struct:
		values := map[string]any{}
		for at, field := range of.DataType().(*arrow.StructType).Fields() {
			values[field.Name] = value(of.Field(at), row)
		}
		return values
	}
	return fmt.Sprintf("%T", of)
}

func column(batch arrow.RecordBatch, name string) []any {
	values := []any{}
	for _, at := range batch.Schema().FieldIndices(name) {
		for row := range int(batch.NumRows()) {
			values = append(values, value(batch.Column(at), row))
		}
	}
	return values
}

func command(fields map[string]any) *flight.FlightDescriptor {
	text, _ := json.Marshal(fields)
	return &flight.FlightDescriptor{Type: flight.DescriptorCMD, Cmd: text}
}

func path(names ...string) *flight.FlightDescriptor {
	return &flight.FlightDescriptor{Type: flight.DescriptorPATH, Path: names}
}

func must[T any](value T, err error) T {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	return value
}

func get(ctx context.Context, descriptor *flight.FlightDescriptor) *flight.Reader {
	info := must(client.GetFlightInfo(ctx, descriptor))
	stream := must(client.DoGet(ctx, info.Endpoint[0].Ticket))
	return must(flight.NewRecordReader(stream))
}

type said struct {
	Positions     map[string]int64 `json:"positions"`
	SchemaChanged bool             `json:"schema_changed"`
}

func saidBy(reader *flight.Reader) (what said) {
	must(0, json.Unmarshal(reader.LatestAppMetadata(), &what))
	return what
}

// push stores a message as a Redis client does.
func push(message string) string {
	conn := must(net.Dial("tcp", "127.0.0.1:"+os.Getenv("KARROW_PORT")))
	defer conn.Close()
	key := "topics:" + topic
	fmt.Fprintf(conn, "*3\r\n$5\r\nRPUSH\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n", len(key), key, len(message), message)
	answer := make([]byte, 100)
	return string(answer[:must(conn.Read(answer))])
}

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), 170*time.Second)
	defer cancel()
	client = must(flight.NewClientWithMiddleware("127.0.0.1:"+os.Getenv("FLIGHT_PORT"), nil, nil,
		grpc.WithTransportCredentials(insecure.NewCredentials())))
	defer client.Close()
	if len(os.Args) > 1 && os.Args[1] == "history" {
		history(ctx)
		return
	}

	info := must(client.GetFlightInfo(ctx, path(topic)))
	schema := must(flight.DeserializeSchema(info.Schema, memory.DefaultAllocator))
	payload := arrow.StructOf(
		arrow.Field{Name: "id", Type: arrow.PrimitiveTypes.Int64, Nullable: true},
		arrow.Field{Name: "price", Type: arrow.PrimitiveTypes.Float64, Nullable: true},
		arrow.Field{Name: "name", Type: arrow.BinaryTypes.String, Nullable: true},
		arrow.Field{Name: "paid", Type: arrow.FixedWidthTypes.Boolean, Nullable: true},
		arrow.Field{Name: "tags", Type: arrow.ListOf(arrow.BinaryTypes.String), Nullable: true})
	var names []string
	for _, field := range schema.Fields() {
		names = append(names, field.Name)
	}
	got, _ := schema.FieldsByName("payload")
	step("info",
		check{"endpoints", len(info.Endpoint), 1},
		check{"columns", names, []string{"topic", "partition", "offset", "timestamp", "key", "headers", "payload", "error"}},
		check{"payload", len(got) == 1 && arrow.TypeEqual(got[0].Type, payload), true})

	result := must(client.GetSchema(ctx, path(topic)))
	promised := must(flight.DeserializeSchema(result.GetSchema(), memory.DefaultAllocator))
	step("schema", check{"equal", promised.Equal(schema), true})

	reader := get(ctx, path(topic))
	reader.Next()
	batch := reader.RecordBatch()
	step("values",
		check{"schema", reader.Schema().Equal(schema), true},
		check{"topic", column(batch, "topic"), []any{topic, topic, topic}},
		check{"partition", column(batch, "partition"), []any{int32(0), int32(0), int32(0)}},
		check{"offset", column(batch, "offset"), []any{int64(0), int64(1), int64(2)}},
		check{"timestamp", column(batch, "timestamp"), []any{int64(1709251198500), int64(1709251199500), int64(1709251200500)}},
		check{"key", column(batch, "key"), []any{"k\xff0", "k\xff1", "k\xff2"}},
		check{"payload", column(batch, "payload"), []any{
			map[string]any{"id": int64(1<<53 + 1), "price": 19.99, "name": "Zoë 𝄞", "paid": true, "tags": []any{"a", ""}},
			nil,
			map[string]any{"id": int64(-1 << 63), "price": 5.0, "name": nil, "paid": false, "tags": []any{}}}},
		check{"error", column(batch, "error"), []any{nil, nil, nil}},
		check{"positions", saidBy(reader).Positions, map[string]int64{"0": 3}},
		check{"more", reader.Next(), false},
		check{"error at the end", reader.Err(), nil})

	reader = get(ctx, command(map[string]any{
		"topic": topic, "from": map[string]any{"positions": map[string]int64{"0": 1}}, "layout": "flat", "columns": []string{"_offset", "id"}}))
	reader.Next()
	step("range",
		check{"offset", column(reader.RecordBatch(), "_offset"), []any{int64(1), int64(2)}},
		check{"id", column(reader.RecordBatch(), "id"), []any{nil, int64(-1 << 63)}},
		check{"columns", reader.RecordBatch().NumCols(), int64(2)})

	_, unknown := client.GetFlightInfo(ctx, path(topic+"-unknown"))
	_, wrong := client.GetFlightInfo(ctx, command(map[string]any{"topic": topic, "form": 1}))
	forged, err := client.DoGet(ctx, &flight.Ticket{Ticket: []byte("forged")})
	if err == nil {
		_, err = forged.Recv()
	}
	step("errors",
		check{"unknown topic", status.Code(unknown), codes.NotFound},
		check{"its name", strings.Contains(status.Convert(unknown).Message(), topic+"-unknown"), true},
		check{"unknown field", status.Code(wrong), codes.InvalidArgument},
		check{"its name", strings.Contains(status.Convert(wrong).Message(), "form"), true},
		check{"forged ticket", status.Code(err), codes.InvalidArgument})

	following, stop := context.WithCancel(ctx)
	reader = get(following, command(map[string]any{"topic": topic, "from": "earliest", "to": "follow"}))
	var ids []any
	positions := map[string]int64{}
	take := func(rows int) {
		for len(ids) < rows && reader.Next() {
			for _, payload := range column(reader.RecordBatch(), "payload") {
				if payload, is := payload.(map[string]any); is {
					ids = append(ids, payload["id"])
				} else {
					ids = append(ids, nil)
				}
			}
			positions = saidBy(reader).Positions
		}
	}
	take(3)
	checks := []check{}
	for number := range 3 {
		answer := push(fmt.Sprintf(`{"id": %d, "name": "followed"}`, number))
		checks = append(checks, check{"RPUSH", answer, ":1\r\n"})
		take(4 + number)
	}
	step("follow", append(checks,
		check{"ids", ids, []any{int64(1<<53 + 1), nil, int64(-1 << 63), int64(0), int64(1), int64(2)}},
		check{"positions", positions, map[string]int64{"0": 6}})...)

	listed := map[string]int64{}
	flights := must(client.ListFlights(ctx, &flight.Criteria{Expression: []byte(topic)}))
	for {
		info, err := flights.Recv()
		if err == io.EOF {
			break
		}
		must(0, err)
		listed[strings.Join(info.FlightDescriptor.Path, "/")] = int64(len(info.Endpoint))
	}
	step("list", check{"flights", listed, map[string]int64{topic: 1}})
	stop()
	ended := make(chan bool)
	go func() { ended <- reader.Next() }()
	select {
	case more := <-ended:
		step("cancel", check{"more", more, false}, check{"error", reader.Err() != nil, true})
	case <-time.After(20 * time.Second):
		step("cancel", check{"ended", false, true})
	}
}

func history(ctx context.Context) {
	want, _ := strconv.Atoi(os.Getenv("COUNT"))
	reader := get(ctx, path(topic))
	seen, sum, bytesRead := map[int64]bool{}, int64(0), 0
	for reader.Next() {
		batch := reader.RecordBatch()
		payload := batch.Column(batch.Schema().FieldIndices("payload")[0]).(*array.Struct)
		numbers := payload.Field(0).(*array.Int64)
		texts := payload.Field(1).(*array.String)
		for row := range numbers.Len() {
			seen[numbers.Value(row)] = true
			sum += numbers.Value(row)
			bytesRead += len(bytes.TrimSpace([]byte(texts.Value(row))))
		}
	}
	all := int64(want) * int64(want-1) / 2
	step("history", check{"error", fmt.Sprint(reader.Err()), "<nil>"}, check{"rows", len(seen), want},
		check{"sum", sum, all}, check{"more than 100 MB", bytesRead > 100<<20, true})
}
