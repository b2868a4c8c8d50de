//! JSON objects beside arrow-json, which gets all records in one buffer.

use std::hint::black_box;
use std::sync::Arc;

use arrow::array::{Array, AsArray};
use arrow::datatypes::{DataType, Schema};
use karrow::decode::decoder::{Decoder, Value};
use karrow::decode::json::{JsonDecoder, SharedShape};
use karrow::decode::projection::Projection;
use karrow::decode::reject::RecordLimits;

use super::{Pair, ROWS};

/// The records of each shape.
pub fn pairs() -> Vec<Pair> {
    [
        ("JSON, flat 100 B", records(flat)),
        ("JSON, nested 1 KB", records(nested)),
        ("JSON, strings 300 B", records(strings)),
        ("JSON, strings with escapes 300 B", records(escapes)),
    ]
    .into_iter()
    .map(|(name, records)| pair(name, records))
    .collect()
}

fn records(record: fn(u64) -> String) -> Vec<String> {
    (0..ROWS as u64).map(|row| record(row.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 16)).collect()
}

fn flat(seed: u64) -> String {
    format!(
        r#"{{"id":{},"price":{}.{:02},"side":"{}","symbol":"SYM{}","at":{},"open":{}}}"#,
        seed % 1_000_000_000,
        seed % 10_000,
        seed % 100,
        if seed & 1 == 0 { "buy" } else { "sell" },
        seed % 500,
        1_700_000_000_000 + seed % 1_000_000_000,
        seed & 2 == 0,
    )
}

fn nested(seed: u64) -> String {
    let items: Vec<String> = (0..6)
        .map(|item| {
            let seed = seed.wrapping_mul(item + 3);
            format!(
                r#"{{"sku":"A-{:06}","count":{},"price":{{"amount":{}.{:02},"currency":"EUR"}},"tags":["t{}","t{}"]}}"#,
                seed % 1_000_000,
                seed % 9 + 1,
                seed % 1000,
                seed % 100,
                seed % 7,
                seed % 11
            )
        })
        .collect();
    format!(
        r#"{{"order":{seed},"customer":{{"id":{},"name":"Customer {}","address":{{"street":"Main Street {}","city":"Springfield","zip":"{:05}"}}}},"items":[{}],"total":{}.5,"paid":true,"note":null,"history":[{},{},{}]}}"#,
        seed % 100_000,
        seed % 1000,
        seed % 300,
        seed % 99_999,
        items.join(","),
        seed % 5000,
        seed % 10,
        seed % 20,
        seed % 30
    )
}

fn strings(seed: u64) -> String {
    format!(
        r#"{{"user":"user-{seed:020}","agent":"Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/{}.0","path":"/products/{}/reviews?page={}&sort=new","referrer":"https://example.com/search?q=thing+number+{}","session":"{:032x}"}}"#,
        seed % 120,
        seed % 100_000,
        seed % 50,
        seed % 1000,
        u128::from(seed) * 0x1234_5678_9ABC,
    )
}

fn escapes(seed: u64) -> String {
    format!(
        r#"{{"text":"line {seed}\nwith \"quotes\" and a tab\tand a path C:\\temp\\{}","unicode":"Z\u00fcrich \ud83d\ude00 grüezi {}","html":"<a href=\"https:\/\/example.com\/{}\">link<\/a>","more":"{}"}}"#,
        seed % 1000,
        seed % 77,
        seed % 999,
        "no escapes here ".repeat(6),
    )
}

fn pair(name: &str, records: Vec<String>) -> Pair {
    let bytes = records.iter().map(String::len).sum();
    let name = format!("{name} ({} B) / arrow-json, one buffer", bytes / records.len());
    let buffer = records.join("\n").into_bytes();

    let mut decoder =
        JsonDecoder::new(SharedShape::new(1000), Projection::All, RecordLimits::default());
    let rows = records;
    let mut decode = move || {
        let values: Vec<Option<Value<'_>>> =
            rows.iter().map(|record| Some(Value::new(record.as_bytes()))).collect();
        let mut bad = Vec::new();
        let array = decoder.decode(&values, &mut bad).expect("decodes");
        assert!(bad.is_empty());
        array
    };
    let columns = decode();
    let DataType::Struct(fields) = columns.data_type() else { panic!("no struct") };
    let schema = Arc::new(Schema::new(fields.clone()));

    let mut theirs = arrow_json::ReaderBuilder::new(schema)
        .with_batch_size(ROWS)
        .build_decoder()
        .expect("a decoder");
    let mut decode_theirs = move || {
        let mut rest = buffer.as_slice();
        while !rest.is_empty() {
            let read = theirs.decode(rest).expect("decodes");
            if read == 0 {
                break;
            }
            rest = &rest[read..];
        }
        theirs.flush().expect("flushes").expect("a batch")
    };
    let batch = decode_theirs();
    assert_eq!(columns.as_struct().columns(), batch.columns(), "{name}: both give the same");

    Pair {
        name,
        bytes,
        ours: Box::new(move || {
            black_box(decode());
        }),
        theirs: Box::new(move || {
            black_box(decode_theirs());
        }),
    }
}
