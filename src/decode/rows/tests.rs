//! The rows of streams: what they may become, and what is refused.

use std::time::Duration;

use arrow::array::{
    Array, ArrayData, ArrayRef, BinaryViewBuilder, Date32Array, Date64Array, DictionaryArray,
    FixedSizeListArray, Float16Array, Float32Array, Float64Array, Int8Array, ListArray, MapArray,
    RecordBatch, StringArray, StructArray, Time32SecondArray, Time64NanosecondArray,
    TimestampSecondArray, make_array,
};

use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::datatypes::{
    ArrowPrimitiveType, DataType, Field, Fields, Float16Type, Int8Type, Schema,
};
use arrow_ipc::CompressionType;
use arrow_ipc::writer::{IpcWriteOptions, StreamWriter};

use super::*;

fn rows_of(streams: &[&[u8]], bytes_max: usize) -> Result<Vec<OwnedMessage>, String> {
    super::rows_of(streams, 0, bytes_max).map_err(|error| error.to_string())
}

fn batch(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
    let fields: Vec<Field> = columns
        .iter()
        .map(|(name, array)| Field::new(*name, array.data_type().clone(), true))
        .collect();
    let arrays = columns.into_iter().map(|(_, array)| array).collect();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).expect("a batch")
}

fn stream(columns: Vec<(&str, ArrayRef)>) -> Vec<u8> {
    let batch = batch(columns);
    let mut writer = StreamWriter::try_new(Vec::new(), &batch.schema()).expect("a writer");
    writer.write(&batch).expect("written");
    writer.into_inner().expect("finished")
}

/// `count` times the value that has a place in `values`.
fn dictionary(values: Vec<Option<&str>>, place: i8, count: usize) -> ArrayRef {
    let keys = Int8Array::from(vec![place; count]);
    let values = Arc::new(StringArray::from(values));
    Arc::new(DictionaryArray::<Int8Type>::try_new(keys, values).expect("a dictionary"))
}

/// Those that are text.
fn payloads(rows: &[OwnedMessage]) -> Vec<Option<&str>> {
    rows.iter()
        .map(|row| row.payload.as_deref().and_then(|bytes| str::from_utf8(bytes).ok()))
        .collect()
}

#[test]
fn few_bytes_are_no_way_to_many_rows() {
    const MAX: usize = 8 << 20;
    let long = "x".repeat(1_000_000);
    let many = |count: usize| dictionary(vec![Some(&long)], 0, count);
    let few = |count: usize| dictionary(vec![Some("v")], 0, count);
    let views = || {
        let mut views = BinaryViewBuilder::new().with_deduplicate_strings();
        (0..1_000).for_each(|_| views.append_value(&long));
        Arc::new(views.finish()) as ArrayRef
    };
    let list = |items: ArrayRef, rows: usize| {
        let field = Arc::new(Field::new_list_field(items.data_type().clone(), true));
        let offsets = OffsetBuffer::from_lengths(vec![items.len() / rows; rows]);
        Arc::new(ListArray::new(field, offsets, items, None)) as ArrayRef
    };
    let headers = |names: ArrayRef, values: ArrayRef| {
        let pairs = StructArray::try_from(vec![("key", names), ("value", values)]);
        list(Arc::new(pairs.expect("pairs")), 10)
    };
    let cases = [
        (vec![("payload", many(100_000))], "payload: row 8: "),
        (vec![("payload", views())], "payload: row 8: "),
        (vec![("a", many(100_000))], "payload.a: row 8: "),
        (vec![("a", list(many(1_000), 1))], "payload.a: row 0: "),
        (vec![(long.as_str(), few(3_000))], "payload: row 7: "),
        (vec![("payload", few(100)), ("key", many(100))], "key: row 8: "),
        (vec![("payload", few(10)), ("headers", headers(few(100), many(100)))], "row 0: "),
        (vec![("payload", few(10)), ("headers", headers(many(100), few(100)))], "row 0: "),
    ];
    for (columns, place) in cases {
        let why = rows_of(&[&stream(columns)], MAX).expect_err(place);
        let wanted = format!("{place}the rows of one command are more than {MAX} bytes");
        assert_eq!(why, wanted);
    }
    // All streams of a command are counted together.
    let half = stream(vec![("payload", many(5))]);
    assert_eq!(rows_of(&[&half], MAX).expect("rows").len(), 5);
    let why = rows_of(&[&half, &half], MAX).expect_err("too much");
    assert!(why.starts_with("payload: row 8: the rows of one command"), "{why}");
    // Text that is escaped is counted as it is written.
    let escaped = "\u{1}".repeat(MAX / 5);
    let escaped = stream(vec![("a", Arc::new(StringArray::from(vec![escaped])) as ArrayRef)]);
    rows_of(&[&escaped], MAX).expect_err("too much");
    let plain = "é".repeat(MAX / 3);
    let plain = stream(vec![("a", Arc::new(StringArray::from(vec![plain])) as ArrayRef)]);
    assert_eq!(rows_of(&[&plain], MAX).expect("a row").len(), 1);
}

#[test]
fn dictionaries_are_looked_up() {
    let of = |place| dictionary(vec![Some("v"), None], place, 2);
    let columns = || vec![("a", of(0)), ("b", of(1))];
    let rows = rows_of(&[&stream(columns())], 1 << 20).expect("rows");
    assert_eq!(payloads(&rows), [Some(r#"{"a":"v"}"#); 2]);
    let rows = rows_of(&[&stream(vec![("payload", of(0)), ("key", of(1))])], 1 << 20);
    let rows = rows.expect("rows");
    assert_eq!((payloads(&rows), rows[0].key.as_ref()), (vec![Some("v"); 2], None));
    let rows = rows_of(&[&stream(vec![("payload", of(1)), ("key", of(0))])], 1 << 20);
    let rows = rows.expect("rows");
    assert_eq!((payloads(&rows), rows[0].key.as_deref()), (vec![None; 2], Some(&b"v"[..])));
}

#[test]
fn json_has_every_key_once() {
    let maps = |keys: [&str; 4], ends: [i32; 4]| {
        let keys = StringArray::from(keys.to_vec());
        let values = Int8Array::from(vec![Some(1), None, Some(3), Some(4)]);
        let pair = [("keys", DataType::Utf8, false), ("values", DataType::Int8, true)];
        let pair: Fields =
            pair.into_iter().map(|(name, of, nullable)| Field::new(name, of, nullable)).collect();
        let entries = StructArray::new(pair.clone(), vec![Arc::new(keys), Arc::new(values)], None);
        let field = Arc::new(Field::new("entries", DataType::Struct(pair), false));
        let offsets = OffsetBuffer::new(ends.to_vec().into());
        let nulls = NullBuffer::from(vec![true, false, true]);
        let maps = MapArray::new(field, offsets, entries, Some(nulls), false);
        stream(vec![("m", Arc::new(maps) as ArrayRef)])
    };
    let rows = rows_of(&[&maps(["a", "b", "a", "b"], [0, 2, 2, 4])], 1 << 20).expect("rows");
    assert_eq!(
        payloads(&rows),
        [Some(r#"{"m":{"a":1}}"#), Some("{}"), Some(r#"{"m":{"a":3,"b":4}}"#)]
    );
    for keys in [["a", "b", "c", "c"], ["a", "c", "c", "c"]] {
        let why = rows_of(&[&maps(keys, [0, 2, 2, 4])], 1 << 20).expect_err("twice");
        assert_eq!(why, "payload.m: row 2: the key 'c' is there twice");
    }
    // What a null covers is not written, and not looked at.
    let rows = rows_of(&[&maps(["a", "b", "b", "c"], [0, 1, 3, 4])], 1 << 20).expect("rows");
    assert_eq!(payloads(&rows)[1], Some("{}"));
}

#[test]
fn what_is_not_written_may_be_anything() {
    let floats = || Arc::new(Float64Array::from(vec![f64::NAN, 0.5])) as ArrayRef;
    let nulls = || Some(NullBuffer::from(vec![false, true]));
    let field = |name: &str| Field::new(name, DataType::Float64, true);
    let objects = StructArray::new(vec![field("x")].into(), vec![floats()], nulls());
    let offsets = OffsetBuffer::from_lengths([1, 1]);
    let lists = ListArray::new(Arc::new(field("item")), offsets, floats(), nulls());
    let fixed = FixedSizeListArray::new(Arc::new(field("item")), 1, floats(), nulls());
    let named = DictionaryArray::<Int8Type>::new(Int8Array::from(vec![1, 1]), floats());
    let columns = || {
        vec![
            ("s", Arc::new(objects.clone()) as ArrayRef),
            ("l", Arc::new(lists.clone())),
            ("f", Arc::new(fixed.clone())),
        ]
    };
    let all = [columns(), vec![("d", Arc::new(named) as ArrayRef)]].concat();
    let rows = rows_of(&[&stream(all)], 1 << 20).expect("rows");
    assert_eq!(
        payloads(&rows),
        [Some(r#"{"d":0.5}"#), Some(r#"{"s":{"x":0.5},"l":[0.5],"f":[0.5],"d":0.5}"#)]
    );
    // It is looked at where it is written, and the row is named that does.
    let bare = |array: ArrayRef| array.to_data().into_builder().nulls(None);
    for (name, array) in columns() {
        let array = make_array(bare(array).build().expect("an array"));
        let why = rows_of(&[&stream(vec![(name, array)])], 1 << 20).expect_err("a NaN");
        let path = if name == "s" { "s.x" } else { name };
        assert_eq!(why, format!("payload.{path}: row 0: JSON has neither NaN nor infinities"));
    }
    type Half = <Float16Type as ArrowPrimitiveType>::Native;
    let halves = [Half::from_bits(0), Half::from_bits(0x7E00)];
    let later: Vec<(&str, ArrayRef)> = vec![
        ("a", Arc::new(Float32Array::from(vec![0.0, f32::INFINITY]))),
        ("a", Arc::new(Float16Array::from_iter_values(halves))),
        ("a", Arc::new(Date32Array::from(vec![0, i32::MAX]))),
        ("a", Arc::new(Date64Array::from(vec![0, i64::MAX]))),
        ("a", Arc::new(Time32SecondArray::from(vec![0, -1]))),
        ("a", Arc::new(Time64NanosecondArray::from(vec![0, i64::MAX]))),
        ("a", Arc::new(TimestampSecondArray::from(vec![0, i64::MAX]).with_timezone("UTC"))),
    ];
    for column in later {
        let what = column.1.data_type().to_string();
        let why = rows_of(&[&stream(vec![column])], 1 << 20).expect_err(&what);
        assert!(why.starts_with("payload.a: row 1: "), "{why} for {what}");
    }
}

/// Streams with all that a stream may have.
fn streams() -> Vec<Vec<u8>> {
    let text = |values: &[&str]| Arc::new(StringArray::from(values.to_vec())) as ArrayRef;
    let list = |items: ArrayRef| {
        let field = Arc::new(Field::new_list_field(items.data_type().clone(), true));
        let offsets = OffsetBuffer::from_lengths([1, 2]);
        Arc::new(ListArray::new(field, offsets, items, None)) as ArrayRef
    };
    let pairs = || {
        let pairs = [("key", text(&["a", "b", "c"])), ("value", text(&["x", "y", "z"]))];
        StructArray::try_from(pairs.to_vec()).expect("pairs")
    };
    let map = {
        let pair = ["key", "value"].map(|name| Field::new(name, DataType::Utf8, false));
        let pair = Fields::from(pair.to_vec());
        let entries = StructArray::new(pair.clone(), pairs().columns().to_vec(), None);
        let field = Arc::new(Field::new("entries", DataType::Struct(pair), false));
        MapArray::new(field, OffsetBuffer::from_lengths([1, 2]), entries, None, false)
    };
    let mut views = BinaryViewBuilder::new();
    views.append_value(b"short");
    views.append_value(b"more than twelve bytes");
    let message = vec![
        ("key", dictionary(vec![Some("k"), None], 0, 2)),
        ("headers", list(Arc::new(pairs()))),
        ("timestamp", Arc::new(TimestampSecondArray::from(vec![1, 2])) as ArrayRef),
        ("partition", Arc::new(Int8Array::from(vec![Some(0), None]))),
        ("payload", Arc::new(views.finish())),
    ];
    let object = vec![
        ("map", Arc::new(map) as ArrayRef),
        ("list", list(dictionary(vec![Some("v")], 0, 3))),
        ("float", Arc::new(Float32Array::from(vec![0.5, 1e30]))),
        ("half", Arc::new(Float16Array::from_iter_values([Default::default(); 2]))),
        ("date", Arc::new(Date32Array::from(vec![1, 2]))),
        ("object", Arc::new(pairs().slice(0, 2))),
        ("fixed", make_array(ArrayData::new_null(&DataType::FixedSizeBinary(3), 2))),
        ("nulls", make_array(ArrayData::new_null(&DataType::Null, 2))),
    ];
    let mut streams = vec![stream(message.clone()), stream(object.clone())];
    for compression in [CompressionType::LZ4_FRAME, CompressionType::ZSTD] {
        let options = IpcWriteOptions::default().try_with_compression(Some(compression));
        let batch = batch(object.clone());
        let mut writer = StreamWriter::try_new_with_options(
            Vec::new(),
            &batch.schema(),
            options.expect("options"),
        )
        .expect("a writer");
        writer.write(&batch).expect("written");
        writer.write(&batch).expect("written");
        streams.push(writer.into_inner().expect("finished"));
    }
    streams
}

#[test]
fn changed_streams_are_harmless() {
    const BYTES_MAX: usize = 1 << 20;
    const CHANGED: usize = 40_000;
    let streams = streams();
    for stream in &streams {
        rows_of(&[stream], BYTES_MAX).expect("rows");
    }
    let mut state: u64 = 0x9E37_79B9_7F4A_7C15;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below.max(1) as u64) as usize
    };
    // Most panics of Arrow's reader are the same few, and caught.
    let began = std::time::Instant::now();
    let mut taken = 0;
    for _ in 0..CHANGED {
        let mut changed = streams[random(streams.len())].clone();
        for _ in 0..=random(4) {
            let at = random(changed.len());
            match random(6) {
                0 => changed[at] ^= 1 << random(8),
                1 => changed[at] = random(256) as u8,
                2 => changed[at] = [0, 1, 0x7F, 0x80, 0xFF][random(5)],
                3 => {
                    let number = [u32::MAX, 1 << 30, 1 << 20, 1_000, 0][random(5)];
                    let end = changed.len().min(at + 4);
                    changed[at..end].copy_from_slice(&number.to_le_bytes()[..end - at]);
                }
                4 => {
                    let from = random(changed.len());
                    let len = random(64).min(changed.len() - from.max(at));
                    changed.copy_within(from..from + len, at);
                }
                _ if random(8) == 0 => changed.truncate(at.max(1)),
                _ => {}
            }
        }
        if let Ok(rows) = rows_of(&[&changed], BYTES_MAX) {
            taken += 1;
            let bytes: usize = rows.iter().map(|row| row.borrowed().bytes()).sum();
            assert!(bytes <= BYTES_MAX && rows.len() <= ROWS_MAX, "{bytes}");
            // Others are the bytes of a column.
            for text in payloads(&rows).into_iter().flatten().filter(|it| it.starts_with("{\"")) {
                let object = serde_json::from_str::<serde_json::Value>(text);
                object.unwrap_or_else(|error| panic!("{text}: {error}"));
            }
        }
    }
    assert!(taken > CHANGED / 20, "{taken} were taken");
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
}
