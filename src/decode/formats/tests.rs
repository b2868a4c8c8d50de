//! Topics whose values name schemas of a registry.

use arrow::array::{Array, AsArray};
use arrow::datatypes::Int64Type;
use futures::future::BoxFuture;

use super::*;
use crate::decode::schemas::{RegisteredSchema, SchemaKind};
use crate::kafka::record::RecordView;

/// A registry whose memory is as short as can be: that there is no such schema is told, and forgotten at once.
#[derive(Default)]
struct Forgetful {
    known: Mutex<HashMap<SchemaKey, Lookup>>,
    fetched: Mutex<HashMap<SchemaKey, Lookup>>,
    fetches: Mutex<usize>,
}

impl Forgetful {
    fn with(schemas: &[(u32, SchemaKind, &str)]) -> Arc<Self> {
        let all = Self::default();
        for (id, kind, text) in schemas {
            all.add(*id, *kind, text);
        }
        Arc::new(all)
    }

    fn add(&self, id: u32, kind: SchemaKind, text: &str) {
        let (key, text, references) = (SchemaKey::Id(id), text.to_owned(), Vec::new());
        let schema = RegisteredSchema { key, kind, text, references };
        self.known.lock().insert(key, Lookup::Known(Arc::new(schema)));
    }
}

impl Schemas for Forgetful {
    fn look_up(&self, key: &SchemaKey) -> Lookup {
        self.fetched.lock().get(key).cloned().unwrap_or(Lookup::Unfetched)
    }

    fn fetch(&self, key: SchemaKey) -> BoxFuture<'_, Result<Lookup>> {
        *self.fetches.lock() += 1;
        let found = self.known.lock().get(&key).cloned();
        if let Some(found) = &found {
            self.fetched.lock().insert(key, found.clone());
        }
        let found = found.unwrap_or_else(|| Lookup::Unknown("no such schema".to_owned()));
        Box::pin(std::future::ready(Ok(found)))
    }
}

fn framed(id: u32, body: &[u8]) -> Vec<u8> {
    [&[0], &id.to_be_bytes()[..], body].concat()
}

fn decoder(format: Format, schemas: &Arc<Forgetful>) -> RecordDecoder {
    let config = FormatsConfig { payload: format, ..FormatsConfig::default() };
    let formats = Formats::new(config, Some(schemas.clone())).expect("formats");
    let topic = formats.topic("t").expect("a topic");
    topic.decoder(&Projection::All, Layout::Struct, None).expect("a decoder")
}

/// Each row's `id`, and how often it was asked what has to be fetched first.
async fn ids(decoder: &mut RecordDecoder, payloads: &[Vec<u8>]) -> (Vec<Option<i64>>, usize) {
    let records: Vec<RecordView<'_>> = (0..)
        .zip(payloads)
        .map(|(offset, payload)| RecordView {
            topic: "t",
            partition: 0,
            offset,
            timestamp: None,
            key: None,
            headers: Vec::new(),
            payload: Some(payload),
        })
        .collect();
    let mut rounds = 0;
    loop {
        let keys = decoder.unfetched(&records);
        if keys.is_empty() {
            break;
        }
        rounds += 1;
        assert!(rounds < 10, "{} schemas are still not fetched", keys.len());
        decoder.fetch(keys).await;
    }
    let decoded = decoder.decode(&records).expect("decoded");
    decoder.done();
    let payload = decoded.batch.column_by_name("payload").expect("a payload");
    let column = payload.as_struct().column_by_name("id").expect("an id");
    let column = column.as_primitive::<Int64Type>();
    let rows = 0..payloads.len();
    let is_there = |row: &usize| payload.is_valid(*row) && column.is_valid(*row);
    (rows.map(|row| is_there(&row).then(|| column.value(row))).collect(), rounds)
}

const AVRO: &str = r#"{"type":"record","name":"R","fields":[{"name":"id","type":"long"}]}"#;
const PROTOBUF: &str = "syntax = 'proto3'; message R { int64 id = 1; }";

#[tokio::test]
async fn a_batch_of_unknown_schemas_is_decoded_however_soon_they_are_forgotten() {
    let formats = [
        (Format::Avro, SchemaKind::Avro, AVRO, &b"\x0e"[..]),
        (Format::Protobuf, SchemaKind::Protobuf, PROTOBUF, b"\0\x08\x07"),
        (Format::Auto, SchemaKind::Avro, AVRO, b"\x0e"),
    ];
    for (format, kind, text, body) in formats {
        let schemas = Forgetful::with(&[(1, kind, text)]);
        let mut decoder = decoder(format, &schemas);
        // Auto looks at the first hundred.
        let id = |row: u32| if row < 100 || row.is_multiple_of(3) { 1 } else { 1_000 + row };
        let payloads: Vec<Vec<u8>> = (0..6_000).map(|row| framed(id(row), body)).collect();
        let wanted: Vec<Option<i64>> = (0..6_000).map(|row| (id(row) == 1).then_some(7)).collect();
        let (got, rounds) = ids(&mut decoder, &payloads).await;
        assert!(got == wanted && rounds <= 2, "{format:?} in {rounds} rounds");
        let unknown = wanted.iter().filter(|id| id.is_none()).count();
        assert_eq!(*schemas.fetches.lock(), unknown + 1, "each was asked for once");
        // The next batch asks again: it may have been registered meanwhile.
        schemas.add(1_100, kind, text);
        assert_eq!(ids(&mut decoder, &payloads[100..102]).await.0, [Some(7), None]);
    }
}

#[tokio::test]
async fn schemas_behind_the_samples_are_fetched_too() {
    for (kind, text, body) in
        [(SchemaKind::Avro, AVRO, &b"\x0e"[..]), (SchemaKind::Protobuf, PROTOBUF, b"\0\x08\x07")]
    {
        let schemas = Forgetful::with(&[(1, kind, text), (2, kind, text)]);
        let mut decoder = decoder(Format::Auto, &schemas);
        let payloads: Vec<Vec<u8>> = (0..SAMPLES_MAX + 50)
            .map(|row| framed(1 + u32::from(row > SAMPLES_MAX), body))
            .collect();
        let (got, _) = ids(&mut decoder, &payloads).await;
        assert_eq!(got, vec![Some(7); SAMPLES_MAX + 50]);
    }
}

#[tokio::test]
async fn a_registry_that_is_away_is_asked_again() {
    struct Away(Mutex<usize>);
    impl Schemas for Away {
        fn look_up(&self, _: &SchemaKey) -> Lookup {
            Lookup::Unfetched
        }

        fn fetch(&self, key: SchemaKey) -> BoxFuture<'_, Result<Lookup>> {
            let mut times = self.0.lock();
            *times += 1;
            let answer = match (key, *times) {
                (SchemaKey::Id(2), ..4) => Err(Error::internal("away")),
                _ => Ok(Lookup::Unknown("no".to_owned())),
            };
            Box::pin(std::future::ready(answer))
        }
    }
    let away = Arc::new(Away(Mutex::new(0)));
    let schemas = BatchSchemas::new(away.clone());
    let keys = [1, 2].map(SchemaKey::Id);
    schemas.clone().fetch_all(keys.to_vec()).await;
    assert!(keys.iter().all(|key| matches!(schemas.look_up(key), Lookup::Unknown(_))));
    // 1 and 2, then 2 until it is answered.
    assert_eq!(*away.0.lock(), 4);
    schemas.forget();
    assert!(keys.iter().all(|key| matches!(schemas.look_up(key), Lookup::Unfetched)));
}
