//! Flight SQL, through its Rust client: statements, parameters, what there is to be read, and what is refused.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BooleanArray, Date32Array, Decimal128Array,
    Float64Array, Int32Array, Int64Array, NullArray, RecordBatch, StringArray,
    TimestampMicrosecondArray, UInt32Array,
};
use arrow::datatypes::{DataType, Int32Type, Int64Type, Schema, TimeUnit};
use arrow::error::ArrowError;
use arrow_flight::error::FlightError;
use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::sql::client::{FlightSqlServiceClient, PreparedStatement};
use arrow_flight::sql::{
    ActionClosePreparedStatementRequest, ActionCreatePreparedStatementRequest,
    ActionCreatePreparedStatementResult, Any, CommandGetCatalogs, CommandGetCrossReference,
    CommandGetDbSchemas, CommandGetExportedKeys, CommandGetImportedKeys, CommandGetPrimaryKeys,
    CommandGetSqlInfo, CommandGetTableTypes, CommandGetTables, CommandGetXdbcTypeInfo,
    CommandPreparedStatementQuery, CommandPreparedStatementUpdate, CommandStatementIngest,
    CommandStatementQuery, CommandStatementSubstraitPlan, CommandStatementUpdate, ProstMessageExt,
    TicketStatementQuery,
};
use arrow_flight::{
    Action, FlightData, FlightDescriptor, FlightInfo, HandshakeRequest, IpcMessage, SchemaAsIpc,
    Ticket,
};
use arrow_ipc::convert::try_schema_from_ipc_buffer;
use arrow_ipc::writer::IpcWriteOptions;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use prost::Message;
use serde_json::{Value, json};
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::flight::in_time;
use crate::support::{Kafka, Karrow, eventually};

type Client = FlightSqlServiceClient<Channel>;

struct Sql {
    karrow: Karrow,
    client: Client,
}

const CANDY: [&str; 4] = [
    r#"{"candy_id":1,"price":0.5,"name":"mint","at":{"shop":"a"}}"#,
    r#"{"candy_id":2,"price":1.25,"name":"it's; drop view candy --","at":null}"#,
    r#"{"candy_id":1,"price":3,"name":null,"at":{"shop":"b"}}"#,
    "no JSON",
];

impl Sql {
    /// A karrow with streams of these topics, which have so many rows.
    async fn start(kafka: &Kafka, topics: &[(&str, f64)]) -> Self {
        let names: Vec<&str> = topics.iter().map(|(name, _)| *name).collect();
        let karrow =
            Karrow::with(kafka, &["--topics", &names.join(","), "--start", "earliest"], |_| {});
        for (topic, rows) in topics {
            let name = format!("karrow_stream_window_rows{{topic=\"{topic}\"}}");
            karrow.await_metric(&name, |found| found == *rows);
        }
        let address = format!("http://{}", karrow.flight_addr());
        let channel = Channel::from_shared(address).expect("an address").connect().await;
        let client = FlightSqlServiceClient::new(channel.expect("a connection"));
        Self { karrow, client }
    }

    async fn candy() -> (Kafka, Self) {
        let kafka = Kafka::with(&[("candy", 1), ("a.b-c_d", 1)]);
        kafka.put_all("candy", 0, CANDY.iter().map(|row| (*row).to_owned()));
        kafka.put("a.b-c_d", 0, r#"{"\"; drop view candy; --":1,"it's":"x"}"#);
        let sql = Self::start(&kafka, &[("candy", 4.0), ("a.b-c_d", 1.0)]).await;
        (kafka, sql)
    }

    fn raw(&self) -> FlightServiceClient<Channel> {
        self.client.inner().clone()
    }

    async fn plan(&self, command: &impl ProstMessageExt) -> Result<FlightInfo, Status> {
        let descriptor = FlightDescriptor::new_cmd(command.as_any().encode_to_vec());
        Ok(in_time(self.raw().get_flight_info(descriptor)).await?.into_inner())
    }

    /// What a plan leads to, in just the columns that it has promised.
    async fn read(&self, info: &FlightInfo) -> Result<RecordBatch, Status> {
        let promised = Arc::new(info.clone().try_decode_schema().expect("a schema"));
        assert_eq!((info.total_records, info.total_bytes, info.endpoint.len()), (-1, -1, 1));
        assert!(info.endpoint[0].location.is_empty());
        self.follow(info.endpoint[0].ticket.clone().expect("a ticket"), promised).await
    }

    async fn follow(&self, ticket: Ticket, promised: Arc<Schema>) -> Result<RecordBatch, Status> {
        let messages = in_time(self.raw().do_get(ticket)).await?.into_inner();
        let messages: Vec<FlightData> = in_time(messages.try_collect()).await?;
        let (first, rest) = messages.split_first().expect("a schema comes first");
        let streamed = Schema::try_from(first).expect("a schema");
        assert_eq!(streamed, *promised, "as promised");
        let batch = |data: &FlightData| {
            assert!(data.data_body.len() < 4 << 20, "{} bytes", data.data_body.len());
            let none = Default::default();
            arrow_flight::utils::flight_data_to_arrow_batch(data, promised.clone(), &none)
        };
        let batches: Vec<RecordBatch> =
            rest.iter().map(batch).collect::<Result<_, ArrowError>>().expect("batches");
        Ok(arrow::compute::concat_batches(&promised, &batches).expect("a table"))
    }

    async fn ask(&self, query: &str) -> Result<RecordBatch, Status> {
        let query = CommandStatementQuery { query: query.to_owned(), transaction_id: None };
        self.read(&self.plan(&query).await?).await
    }

    async fn all(&self, command: impl ProstMessageExt) -> RecordBatch {
        let info = self.plan(&command).await.expect("a plan");
        let descriptor = FlightDescriptor::new_cmd(command.as_any().encode_to_vec());
        let described = self.raw().get_schema(descriptor).await.expect("a schema").into_inner();
        let IpcMessage(promised) = IpcMessage(info.schema.clone());
        assert_eq!(described.schema, promised);
        self.read(&info).await.expect("rows")
    }

    async fn prepared(&mut self, query: &str) -> PreparedStatement<Channel> {
        in_time(self.client.prepare(query.to_owned(), None)).await.expect("prepared")
    }

    async fn bound(
        &mut self,
        query: &str,
        parameters: Vec<(&str, ArrayRef)>,
    ) -> Result<RecordBatch, FlightError> {
        let mut statement = self.prepared(query).await;
        let parameters = RecordBatch::try_from_iter_with_nullable(
            parameters.into_iter().map(|(name, values)| (name, values, true)),
        );
        statement.set_parameters(parameters.expect("a row")).expect("set");
        let info = in_time(statement.execute()).await?;
        let rows = self.read(&info).await.expect("rows");
        in_time(statement.close()).await.expect("closed");
        Ok(rows)
    }

    async fn act(&self, name: &str, body: Vec<u8>) -> Result<Vec<Bytes>, Status> {
        let action = Action { r#type: name.to_owned(), body: body.into() };
        let results = in_time(self.raw().do_action(action)).await?.into_inner();
        in_time(results.map_ok(|result| result.body).try_collect()).await
    }
}

fn texts(batch: &RecordBatch, column: usize) -> Vec<&str> {
    batch.column(column).as_string::<i32>().iter().map(|text| text.unwrap_or("-")).collect()
}

fn json(batch: &RecordBatch) -> Vec<Value> {
    let mut writer = arrow_json::LineDelimitedWriter::new(Vec::new());
    writer.write(batch).expect("JSON");
    writer.finish().expect("JSON");
    let text = String::from_utf8(writer.into_inner()).expect("UTF-8");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_advertised_is_what_comes() {
    let (_kafka, mut sql) = Sql::candy().await;
    for (query, rows) in [
        ("select 1 as a", 1),
        ("select * from candy", 4),
        ("select * from live.candy where false", 0),
        ("from candy", 4),
        ("with a as (select payload.price from candy) select sum(price) from a", 1),
        ("select payload.*, error.message from candy order by \"offset\"", 4),
        ("select 1 as a, 2 as a, null as b, [1, null] as c, {'x': 1, 'y': 'z'} as d", 1),
        ("select map(['a'], [1]) as a, 1.25 as b, interval 1 month as c, uuid() as d", 1),
        ("select 'x'::enum('x', 'y') as a, 1::hugeint as b, now() as c, '1'::bit as d", 1),
        ("select union_value(a := 1) as a, array_value(1, 2) as b, time '01:02:03' as c", 1),
        ("select i, i::varchar as t from range(100000) t(i)", 100_000),
        ("select repeat('x', 100000) as t from range(200)", 200),
        ("describe candy", 8),
        ("show tables", 2),
        ("values (1, 'a'), (2, 'b')", 2),
        ("select * from candy;  -- said", 4),
    ] {
        let answer = sql.ask(query).await.expect(query);
        assert_eq!(answer.num_rows(), rows, "{query}");
        let statement = sql.prepared(query).await;
        let schema = statement.dataset_schema().expect("a schema");
        assert_eq!(schema, answer.schema_ref().as_ref(), "{query}");
        assert!(!schema.fields().is_empty());
    }
    assert!(sql.ask("explain select * from candy").await.expect("a plan").num_rows() > 0);
    // A ticket is good for more than once.
    let query = CommandStatementQuery { query: "from candy".to_owned(), transaction_id: None };
    let info = sql.plan(&query).await.expect("a plan");
    let first = sql.read(&info).await.expect("rows");
    assert_eq!(first, sql.read(&info).await.expect("rows"));
    let descriptor = FlightDescriptor::new_cmd(query.as_any().encode_to_vec());
    let polled = sql.raw().poll_flight_info(descriptor).await.expect("a plan").into_inner();
    assert_eq!(polled.info.expect("it is complete").schema, info.schema);
    assert_eq!(polled.flight_descriptor, None);
    // So is another server's.
    let other = Sql::start(&_kafka, &[("candy", 4.0)]).await;
    assert_eq!(first, other.read(&info).await.expect("rows"));
}

#[tokio::test(flavor = "multi_thread")]
async fn parameters_keep_their_types() {
    let (_kafka, mut sql) = Sql::candy().await;
    let one = |value: ArrayRef| vec![("0", value)];
    let decimal = Decimal128Array::from(vec![12_345]).with_precision_and_scale(20, 2);
    let instant = 1_700_000_000_123_456;
    let cases: Vec<(ArrayRef, &str, Value)> = vec![
        (Arc::new(Int64Array::from(vec![i64::MAX])), "BIGINT", json!(i64::MAX)),
        (Arc::new(Int32Array::from(vec![-1])), "BIGINT", json!(-1)),
        (Arc::new(UInt32Array::from(vec![1])), "UBIGINT", json!(1)),
        (Arc::new(Float64Array::from(vec![0.1])), "DOUBLE", json!(0.1)),
        (Arc::new(BooleanArray::from(vec![true])), "BOOLEAN", json!(true)),
        (Arc::new(StringArray::from(vec!["it's; --"])), "VARCHAR", json!("it's; --")),
        (Arc::new(BinaryArray::from(vec![&b"\x00\xff"[..]])), "BLOB", json!("00ff")),
        (Arc::new(Date32Array::from(vec![1])), "DATE", json!("1970-01-02")),
        (Arc::new(decimal.expect("a decimal")), "DECIMAL(20,2)", json!(123.45)),
        (
            Arc::new(TimestampMicrosecondArray::from(vec![instant])),
            "TIMESTAMP",
            json!("2023-11-14T22:13:20.123456"),
        ),
        (
            Arc::new(TimestampMicrosecondArray::from(vec![instant]).with_timezone("UTC")),
            "TIMESTAMP WITH TIME ZONE",
            json!("2023-11-14T22:13:20.123456Z"),
        ),
    ];
    for (value, name, shown) in cases {
        let answer = sql.bound("select ? as value, typeof($1) as type", one(value)).await;
        assert_eq!(json(&answer.expect(name)), [json!({"value": shown, "type": name})]);
    }
    let null = sql.bound("select ? is null as value", one(Arc::new(NullArray::new(1)))).await;
    assert_eq!(json(&null.expect("a row")), [json!({"value": true})]);
    let found = sql
        .bound(
            "select payload.price from candy where payload.name = ? or payload.price > ? order by 1",
            vec![
                ("0", Arc::new(StringArray::from(vec!["it's; drop view candy --"]))),
                ("1", Arc::new(Float64Array::from(vec![2.0]))),
            ],
        )
        .await;
    assert_eq!(json(&found.expect("rows")), [json!({"price": 1.25}), json!({"price": 3.0})]);
    // By name, in any order.
    let named = sql
        .bound(
            "select $b::int - $a::int as value",
            vec![
                ("b", Arc::new(Int64Array::from(vec![7]))),
                ("a", Arc::new(Int64Array::from(vec![5]))),
            ],
        )
        .await;
    assert_eq!(json(&named.expect("a row")), [json!({"value": 2})]);
    // Their types decide on those of columns, before and after.
    let statement = sql.prepared("select coalesce(?, 1) as a, ?::date as b, ? as c").await;
    let types = |schema: &Schema| -> Vec<DataType> {
        schema.fields().iter().map(|field| field.data_type().clone()).collect()
    };
    let parameters = statement.parameter_schema().expect("a schema");
    assert_eq!(types(parameters), [DataType::Int32, DataType::Date32, DataType::Utf8]);
    assert_eq!(statement.dataset_schema().expect("a schema").fields().len(), 3);
    let statement = sql.prepared("from candy where \"timestamp\" > ? and \"offset\" = ?").await;
    let millis = DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into()));
    let parameters = statement.parameter_schema().expect("a schema");
    assert_eq!(types(parameters), [millis, DataType::Int64]);
    let wide =
        sql.bound("select coalesce(?, 1) as a", one(Arc::new(Int64Array::from(vec![1 << 40]))));
    assert_eq!(json(&wide.await.expect("a row")), [json!({"a": 1_i64 << 40})]);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_parameters_are_refused() {
    let (_kafka, mut sql) = Sql::candy().await;
    let integers = |values: Vec<i64>| Arc::new(Int64Array::from(values)) as ArrayRef;
    let lists = arrow::array::ListArray::from_iter_primitive::<Int32Type, _, _>([Some([Some(1)])]);
    for (parameters, why) in [
        (vec![("0", integers(vec![1, 2]))], "one row of parameters is wanted, not 2"),
        (vec![("0", integers(vec![]))], "one row of parameters is wanted, not 0"),
        (vec![("0", integers(vec![1])), ("1", integers(vec![1]))], "has 1 parameters, not 2"),
        (vec![("0", Arc::new(lists) as ArrayRef)], "is no type of a parameter"),
    ] {
        let error = sql.bound("select ? + 1 as a", parameters).await.expect_err(why);
        assert!(error.to_string().contains(why), "{why}: {error}");
        assert!(error.to_string().contains("invalid argument"), "{why}: {error}");
    }
    let error = in_time(sql.prepared("select ? as a").await.execute()).await.expect_err("no value");
    assert!(
        error.to_string().contains("parameter '1' is missing")
            || error.to_string().contains("has 1 parameters, not 0"),
        "{error}"
    );
    // What is no Arrow, and too much of it.
    let created =
        ActionCreatePreparedStatementRequest { query: "select ?".to_owned(), transaction_id: None };
    let created = sql.act("CreatePreparedStatement", created.as_any().encode_to_vec()).await;
    let created = Any::decode(created.expect("prepared")[0].clone()).expect("a message");
    let created: ActionCreatePreparedStatementResult = created.unpack().expect("it").expect("it");
    let handle = created.prepared_statement_handle;
    let command = CommandPreparedStatementQuery { prepared_statement_handle: handle };
    let descriptor = FlightDescriptor::new_cmd(command.as_any().encode_to_vec());
    let schema = Schema::new(vec![arrow::datatypes::Field::new("a", DataType::Int64, true)]);
    let schema = FlightData::from(SchemaAsIpc::new(&schema, &IpcWriteOptions::default()));
    let first = || schema.clone().with_descriptor(descriptor.clone());
    let garbage = FlightData { data_header: vec![7; 100].into(), ..FlightData::default() };
    let large = FlightData {
        data_header: schema.data_header.clone(),
        data_body: vec![0; 2 << 20].into(),
        ..FlightData::default()
    };
    let no_schema = FlightData::default().with_descriptor(descriptor.clone());
    for (messages, code) in [
        (vec![first(), garbage.clone()], Code::InvalidArgument),
        (vec![first(), large], Code::ResourceExhausted),
        (vec![no_schema], Code::InvalidArgument),
        (vec![garbage.with_descriptor(descriptor.clone())], Code::InvalidArgument),
        (vec![first()], Code::InvalidArgument),
    ] {
        let put = async {
            let results = sql.raw().do_put(stream::iter(messages)).await?.into_inner();
            results.try_collect::<Vec<_>>().await
        };
        let status = in_time(put).await.expect_err("refused");
        assert_eq!(status.code(), code, "{status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn prepared_statements_come_and_go() {
    let (_kafka, mut sql) = Sql::candy().await;
    let mut first = sql.prepared("select 1 as a").await;
    assert_eq!(in_time(first.execute()).await.expect("a plan").endpoint.len(), 1);
    let unknown = ActionClosePreparedStatementRequest { prepared_statement_handle: "x".into() };
    for body in [unknown.as_any().encode_to_vec(), Vec::new(), vec![1, 2, 3]] {
        let closed = sql.act("ClosePreparedStatement", body).await;
        assert_eq!(closed.expect("never an error"), Vec::<Bytes>::new());
    }
    let missing = CommandPreparedStatementQuery { prepared_statement_handle: "x".into() };
    let status = sql.plan(&missing).await.expect_err("there is none");
    assert_eq!(status.code(), Code::NotFound);
    assert!(status.message().contains("prepare it again"), "{status}");
    // A karrow holds so many; the one that was used last stays.
    let mut last = sql.prepared("select 2 as a").await;
    for _ in 0..1_100 {
        sql.prepared("select 3 as a").await;
        in_time(last.execute()).await.expect("it is there");
    }
    let mut gone = None;
    for _ in 0..100 {
        gone = in_time(first.execute()).await.err();
        if gone.is_some() {
            break;
        }
        sql.prepared("select 4 as a").await;
    }
    assert!(gone.expect("it has made room").to_string().contains("prepare it again"));
    let listed = sql.raw().list_actions(arrow_flight::Empty {}).await.expect("a list").into_inner();
    let listed: Vec<_> = listed.map_ok(|action| action.r#type).try_collect().await.expect("a list");
    assert!(listed.contains(&"CreatePreparedStatement".to_owned()), "{listed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn catalogs_name_what_can_be_read() {
    let (_kafka, sql) = Sql::candy().await;
    assert_eq!(texts(&sql.all(CommandGetCatalogs {}).await, 0), ["live", "memory"]);
    assert_eq!(texts(&sql.all(CommandGetTableTypes {}).await, 0), ["TABLE", "VIEW"]);
    let schemas = sql.all(CommandGetDbSchemas::default()).await;
    assert_eq!((texts(&schemas, 0), texts(&schemas, 1)), (vec!["live", "memory"], vec!["main"; 2]));
    let filtered =
        |catalog: Option<&str>, schema: Option<&str>, table: Option<&str>, kinds: &[&str]| {
            CommandGetTables {
                catalog: catalog.map(str::to_owned),
                db_schema_filter_pattern: schema.map(str::to_owned),
                table_name_filter_pattern: table.map(str::to_owned),
                table_types: kinds.iter().map(|kind| (*kind).to_owned()).collect(),
                include_schema: false,
            }
        };
    let all = ["live.main.a.b-c_d", "live.main.candy", "memory.main.a.b-c_d", "memory.main.candy"];
    for (command, expected) in [
        (filtered(None, None, None, &[]), &all[..]),
        (filtered(Some(""), Some(""), Some(""), &[""]), &all[..]),
        (filtered(Some("live"), None, None, &[]), &all[..2]),
        (filtered(None, Some("m%"), Some("c_ndy"), &["VIEW"]), &[all[1], all[3]]),
        (filtered(None, None, None, &["TABLE"]), &[]),
        (filtered(Some("stored"), None, None, &[]), &[]),
        (filtered(None, None, Some("nosuch"), &["VIEW", "TABLE"]), &[]),
    ] {
        let mut command = command;
        for include_schema in [false, true] {
            command.include_schema = include_schema;
            let found = sql.all(command.clone()).await;
            assert_eq!(found.num_columns(), if include_schema { 5 } else { 4 });
            let names: Vec<String> = (0..found.num_rows())
                .map(|row| [0, 1, 2].map(|column| texts(&found, column)[row]).join("."))
                .collect();
            assert_eq!(names, expected, "{command:?}");
            for row in (0..found.num_rows()).filter(|_| include_schema) {
                let name = [0, 1, 2].map(|column| format!("\"{}\"", texts(&found, column)[row]));
                let streamed = sql.ask(&format!("select * from {}", name.join("."))).await;
                let schema = found.column(4).as_binary::<i32>().value(row);
                let schema = try_schema_from_ipc_buffer(schema).expect("an IPC message");
                assert_eq!(schema, *streamed.expect("rows").schema());
            }
        }
    }
    // Keys of JSON are names like others.
    let odd = sql
        .ask(r#"select payload."""; drop view candy; --" as a, payload."it's" as b from "a.b-c_d""#)
        .await;
    assert_eq!(json(&odd.expect("a row")), [json!({"a": 1, "b": "x"})]);
    assert_eq!(sql.ask("from candy").await.expect("it is there").num_rows(), 4);
    for (columns, keys) in [
        (6, sql.all(CommandGetPrimaryKeys::default()).await),
        (13, sql.all(CommandGetExportedKeys::default()).await),
        (13, sql.all(CommandGetImportedKeys::default()).await),
        (13, sql.all(CommandGetCrossReference::default()).await),
    ] {
        assert_eq!((keys.num_columns(), keys.num_rows()), (columns, 0));
    }
    let types = sql.all(CommandGetXdbcTypeInfo::default()).await;
    assert!(texts(&types, 0).contains(&"TIMESTAMP WITH TIME ZONE"), "{types:?}");
    let integers = sql.all(CommandGetXdbcTypeInfo { data_type: Some(4) }).await;
    assert_eq!(texts(&integers, 0), ["INTEGER", "UINTEGER"]);
    let info = sql.all(CommandGetSqlInfo { info: vec![3, 0, 99_999] }).await;
    assert_eq!(info.column(0).as_primitive::<arrow::datatypes::UInt32Type>().values(), &[0, 3]);
    let values = info.column(1).as_union();
    assert_eq!(values.value(0).as_string::<i32>().value(0), "karrow");
    assert!(values.value(1).as_boolean().value(0), "it is read-only");
    assert!(sql.all(CommandGetSqlInfo { info: Vec::new() }).await.num_rows() > 80);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_written_and_nothing_breaks() {
    let (_kafka, mut sql) = Sql::candy().await;
    for (query, code, why) in [
        ("selec 1", Code::InvalidArgument, "LINE 1: selec 1"),
        ("select * from cand", Code::InvalidArgument, "candy"),
        ("insert into candy values (1)", Code::InvalidArgument, ""),
        ("create table x (i int)", Code::InvalidArgument, "only statements that read"),
        ("drop view candy", Code::InvalidArgument, "only statements that read"),
        ("select 1; select 2", Code::InvalidArgument, "one statement is wanted"),
        ("", Code::InvalidArgument, "no statement"),
        ("select * from read_csv('/etc/passwd')", Code::InvalidArgument, "the function read_csv"),
    ] {
        let status = sql.ask(query).await.expect_err("refused");
        assert_eq!(status.code(), code, "{query}: {status}");
        assert!(status.message().contains(why), "{query}: {status}");
        let error = sql.client.prepare(query.to_owned(), None).await.map(|_| ());
        assert!(error.expect_err("refused").to_string().contains(why), "{query}");
    }
    let long = format!("select '{}'", "x".repeat(1 << 20));
    assert_eq!(sql.ask(&long).await.expect_err("refused").code(), Code::ResourceExhausted);
    let read_only = |status: Status| {
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().contains("read-only"), "{status}");
    };
    let update =
        CommandStatementUpdate { query: "drop view candy".to_owned(), transaction_id: None };
    let commands = [
        update.as_any(),
        CommandPreparedStatementUpdate { prepared_statement_handle: "x".into() }.as_any(),
        CommandStatementIngest::default().as_any(),
    ];
    for command in commands {
        let descriptor = FlightDescriptor::new_cmd(command.encode_to_vec());
        let message = FlightData::default().with_descriptor(descriptor.clone());
        let put = sql.raw().do_put(stream::iter([message])).await.map(|_| ());
        read_only(put.expect_err("refused"));
        read_only(sql.raw().get_flight_info(descriptor).await.map(|_| ()).expect_err("refused"));
    }
    for action in ["BeginTransaction", "EndTransaction", "BeginSavepoint", "EndSavepoint"] {
        read_only(sql.act(action, Vec::new()).await.expect_err("refused"));
    }
    // A failure midway ends the stream with its status.
    let query = "select case when i < 50000 then i else error('late')::int end as a from range(100000) t(i)";
    let status = sql.ask(query).await.expect_err("it fails");
    assert!(status.message().contains("late"), "{status}");
    // Whatever a stranger sends, karrow lives.
    let question = CommandStatementQuery { query: "from candy".to_owned(), transaction_id: None };
    let info = sql.plan(&question).await.expect("a plan");
    let whole = info.endpoint[0].ticket.clone().expect("a ticket").ticket;
    let url = TicketStatementQuery::type_url();
    let ticket =
        |handle: &str| TicketStatementQuery { statement_handle: handle.to_owned().into() }.as_any();
    let mut hostile: Vec<Vec<u8>> = vec![
        ticket("").encode_to_vec(),
        ticket("{}").encode_to_vec(),
        ticket(r#"{"sql":"select 1","schema":"AAAA"}"#).encode_to_vec(),
        ticket(r#"{"sql":"select 1","schema":"/////w=="}"#).encode_to_vec(),
        Any { type_url: url.to_owned(), value: vec![0xff; 10].into() }.encode_to_vec(),
        Any { type_url: format!("{}X", url), value: Bytes::new() }.encode_to_vec(),
        CommandStatementSubstraitPlan::default().as_any().encode_to_vec(),
        CommandPreparedStatementQuery { prepared_statement_handle: "x".into() }
            .as_any()
            .encode_to_vec(),
        question.as_any().encode_to_vec(),
    ];
    hostile.extend((0..whole.len()).step_by(7).map(|end| whole[..end].to_vec()));
    hostile.extend((0..whole.len()).step_by(5).map(|at| {
        let mut bent = whole.to_vec();
        bent[at] ^= 0x55;
        bent
    }));
    for bytes in hostile {
        let ticket = Ticket { ticket: bytes.clone().into() };
        if let Ok(messages) = in_time(sql.raw().do_get(ticket)).await {
            let _: Vec<_> = in_time(messages.into_inner().collect()).await;
        }
        let descriptor = FlightDescriptor::new_cmd(bytes.clone());
        let _ = in_time(sql.raw().get_flight_info(descriptor.clone())).await;
        let _ = in_time(sql.raw().get_schema(descriptor.clone())).await;
        let message = FlightData::default().with_descriptor(descriptor);
        let _ = in_time(sql.raw().do_put(stream::iter([message]))).await;
        let _ = sql.act("CreatePreparedStatement", bytes).await;
    }
    let handshake = sql.raw().handshake(stream::iter([HandshakeRequest::default()])).await;
    let status = handshake.map(|_| ()).expect_err("there are no users");
    assert_eq!(status.code(), Code::Unimplemented);
    assert!(status.message().contains("without a user"), "{status}");
    assert_eq!(sql.read(&info).await.expect("rows").num_rows(), 4);
    let errors = "karrow_flight_errors_total{code=\"INVALID_ARGUMENT\",rpc=\"GetFlightInfo\"}";
    assert!(sql.karrow.metric(errors) > 5.0, "{:?}", sql.karrow.metrics());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_keeps_its_columns_when_the_topic_changes() {
    let (kafka, mut sql) = Sql::candy().await;
    let plan =
        |query: &str| CommandStatementQuery { query: query.to_owned(), transaction_id: None };
    let all = sql.plan(&plan("from candy order by \"offset\"")).await.expect("a plan");
    let prices = sql.plan(&plan("select payload.price from candy")).await.expect("a plan");
    let names = sql.plan(&plan("select payload.candy_id from candy")).await.expect("a plan");
    let mut prepared = sql.prepared("from candy").await;
    kafka.put("candy", 0, r#"{"candy_id":"three","price":2,"sugar":{"kind":"cane"}}"#);
    sql.karrow.await_metric("karrow_stream_window_rows{topic=\"candy\"}", |rows| rows == 5.0);
    // Of all columns, that of errors says what has no place.
    let rows = sql.read(&all).await.expect("rows");
    let errors = rows.column_by_name("error").expect("a column").as_struct();
    let message = errors.column(0).as_string::<i32>().value(4);
    assert!(message.contains("payload.sugar") && message.contains("payload.candy_id"), "{message}");
    assert_eq!(sql.read(&prices).await.expect("the same columns").num_rows(), 5);
    let status = sql.read(&names).await.expect_err("its type has changed");
    assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
    // A new plan has the new columns, of a statement that was prepared before, too.
    let info = in_time(prepared.execute()).await.expect("a plan");
    let rows = sql.read(&info).await.expect("rows");
    let payload = rows.column_by_name("payload").expect("a column").as_struct();
    assert!(payload.column_by_name("sugar").is_some());
    assert_eq!(payload.column_by_name("candy_id").expect("a column").data_type(), &DataType::Utf8);
    let counted = sql.ask("select count(*) as n from candy").await.expect("a row");
    assert_eq!(counted.column(0).as_primitive::<Int64Type>().value(0), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_goes_stops_the_query() {
    let (_kafka, sql) = Sql::candy().await;
    let query = "select i, repeat('x', 1000) as t from range(1000000000) t(i)".to_owned();
    let info = sql.plan(&CommandStatementQuery { query, transaction_id: None }).await;
    let ticket = info.expect("a plan").endpoint[0].ticket.clone().expect("a ticket");
    let mut messages = in_time(sql.raw().do_get(ticket)).await.expect("rows").into_inner();
    for _ in 0..3 {
        in_time(messages.next()).await.expect("a message").expect("no error");
    }
    assert!(sql.karrow.metric("karrow_sql_running") > 0.0);
    drop(messages);
    eventually("the query to end", || {
        (sql.karrow.metric("karrow_sql_running") == 0.0).then_some(())
    });
}
