//! Types that hold two others, with a table and without one.

use arrow::array::{
    Float32Array, Float64Array, Int64Array, ListArray, MapArray, StringArray, StructArray,
    UInt64Array,
};
use arrow::buffer::OffsetBuffer;

use super::*;
use crate::sql::duck::Database;
use crate::sql::store::Store;
use crate::stream::window::Positions;

const WIDE: i64 = EXACT_MAX + 1;

/// A batch with these values in a column, a struct, a list, a map, and a struct in a list.
fn everywhere(values: ArrayRef) -> RecordBatch {
    let of = values.data_type().clone();
    let offsets = || OffsetBuffer::from_lengths(vec![1; values.len()]);
    let struct_of = |fields: Vec<(&str, ArrayRef)>| -> ArrayRef {
        let fields = fields.into_iter().map(|(name, values)| {
            (Arc::new(Field::new(name, values.data_type().clone(), true)), values)
        });
        Arc::new(StructArray::from(fields.collect::<Vec<_>>()))
    };
    let list = |items: ArrayRef| -> ArrayRef {
        let item = Arc::new(Field::new_list_field(items.data_type().clone(), true));
        Arc::new(ListArray::new(item, offsets(), items, None))
    };
    let keys: ArrayRef = Arc::new(StringArray::from(vec!["k"; values.len()]));
    let DataType::Map(entries, _) = map_of(DataType::Utf8, of) else { unreachable!() };
    let DataType::Struct(pair) = entries.data_type() else { unreachable!() };
    let pairs = StructArray::new(pair.clone(), vec![keys, values.clone()], None);
    let map: ArrayRef = Arc::new(MapArray::new(entries, offsets(), pairs, None, false));
    // Names that are one to DuckDB.
    let inner = struct_of(vec![("x", values.clone()), ("X", values.clone())]);
    let payload = struct_of(vec![
        ("n", values.clone()),
        ("l", list(values.clone())),
        ("m", map),
        ("s", list(inner)),
    ]);
    RecordBatch::try_from_iter([("n", values), ("payload", payload)]).expect("a batch")
}

const PLACES: [&str; 6] =
    ["n", "payload.n", "payload.l[1]", "payload.m['k']", "payload.s[1].x", "payload.s[1].\"X_1\""];

/// The type in each place, which is the same one, and the texts there, after these were stored, at once or one by one.
fn stored(arrays: &[ArrayRef], at_once: bool) -> (String, Vec<String>, Vec<Turned>) {
    let database = Database::in_memory(&[("threads", "1")]).expect("a database");
    let connection = database.connect().expect("a connection");
    connection.execute("attach ':memory:' as stored").expect("attached");
    let store = Store::open(&database).expect("a store");
    let batches: Vec<RecordBatch> = arrays.iter().cloned().map(everywhere).collect();
    let mut turned = Vec::new();
    for (n, batches) in (1..).zip(batches.chunks(if at_once { batches.len() } else { 1 })) {
        let ends = Positions::new(vec![n]);
        turned.extend(store.append(&"t".into(), batches, &ends).expect("stored"));
    }
    let mut found = PLACES.iter().map(|place| {
        let sql = format!("select typeof({place}), {place}::varchar from stored.t order by rowid");
        let mut prepared = connection.prepare(&sql).expect("prepared");
        let (mut of, mut texts) = (String::new(), Vec::new());
        for rows in prepared.run().expect("rows") {
            let rows = rows.expect("rows");
            let [types, values] = [0, 1].map(|at| rows.column(at).as_string::<i32>().clone());
            of = types.value(0).to_owned();
            texts.extend(values.iter().map(|text| text.expect("a value").to_owned()));
        }
        (of, texts)
    });
    let first = found.next().expect("a place");
    found.for_each(|other| assert_eq!(other, first));
    (first.0, first.1, turned)
}

#[test]
fn numbers_keep_their_digits_wherever_they_are() {
    let ints = |values: &[i64]| -> ArrayRef { Arc::new(Int64Array::from(values.to_vec())) };
    let floats = |values: &[f64]| -> ArrayRef { Arc::new(Float64Array::from(values.to_vec())) };
    let unsigned = |value: u64| -> ArrayRef { Arc::new(UInt64Array::from(vec![value])) };
    let cases: [(&[ArrayRef], &str, &[&str]); 9] = [
        (
            &[ints(&[EXACT_MAX, -EXACT_MAX]), floats(&[0.5])],
            "DOUBLE",
            &["9007199254740992.0", "-9007199254740992.0", "0.5"],
        ),
        (&[ints(&[1, WIDE]), floats(&[0.5])], "VARCHAR", &["1", "9007199254740993", "0.5"]),
        (&[ints(&[-WIDE]), floats(&[0.5])], "VARCHAR", &["-9007199254740993", "0.5"]),
        (&[ints(&[i64::MIN]), floats(&[0.5])], "VARCHAR", &["-9223372036854775808", "0.5"]),
        (&[floats(&[0.5]), ints(&[WIDE])], "VARCHAR", &["0.5", "9007199254740993"]),
        (&[floats(&[0.5]), ints(&[3])], "DOUBLE", &["0.5", "3.0"]),
        (&[unsigned(u64::MAX), floats(&[0.5])], "VARCHAR", &["18446744073709551615", "0.5"]),
        (&[floats(&[0.5]), unsigned(u64::MAX)], "VARCHAR", &["0.5", "18446744073709551615"]),
        (
            &[ints(&[WIDE]), Arc::new(Float32Array::from(vec![0.1]))],
            "VARCHAR",
            &["9007199254740993", "0.1"],
        ),
    ];
    for (arrays, of, texts) in cases {
        for at_once in [false, true] {
            let (found, found_texts, turned) = stored(arrays, at_once);
            assert_eq!((found.as_str(), found_texts.as_slice()), (of, owned(texts).as_slice()));
            // Each place that has become text is named once.
            let is_text = of == "VARCHAR";
            let expected =
                ["n", "payload.n", "payload.l[]", "payload.m[]", "payload.s[].x", "payload.s[].X"];
            let columns: Vec<&str> = turned.iter().map(|turned| turned.column.as_str()).collect();
            assert_eq!(columns, if is_text { &expected[..] } else { &[] });
        }
    }
}

fn owned(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

#[test]
fn doubles_become_the_shortest_text_that_reads_back() {
    let mut values = vec![
        0.1,
        1.0 / 3.0,
        5e-324,
        f64::MAX,
        f64::MIN_POSITIVE,
        1e15,
        1e16,
        1e22,
        1e23,
        -0.0,
        -123_456_789.123_456_79,
        9_007_199_254_740_993.0,
    ];
    let mut bits = 0x9E37_79B9_7F4A_7C15_u64;
    for _ in 0..2000 {
        bits = bits.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let value = f64::from_bits(bits);
        values.extend(value.is_finite().then_some(value));
    }
    let text: ArrayRef = Arc::new(StringArray::from(vec!["text"]));
    let array: ArrayRef = Arc::new(Float64Array::from(values.clone()));
    let digits = |text: &str| {
        let mantissa = text.split('e').next().unwrap_or_default();
        let digits: String = mantissa.chars().filter(char::is_ascii_digit).collect();
        digits.trim_matches('0').len()
    };
    // Those of the table become text in DuckDB, those that come in Arrow.
    for arrays in [[array.clone(), text.clone()], [text, array]] {
        let (_, texts, _) = stored(&arrays, false);
        let texts: Vec<&String> = texts.iter().filter(|value| *value != "text").collect();
        assert_eq!(texts.len(), values.len());
        for (value, text) in values.iter().zip(texts) {
            assert_eq!(text.parse::<f64>().map(f64::to_bits), Ok(value.to_bits()), "{text}");
            assert_eq!(digits(text), digits(&format!("{value:e}")), "{text}, {value:e}");
        }
    }
}

#[test]
fn what_is_null_is_not_looked_at() {
    let values: ArrayRef =
        Arc::new(Int64Array::new(vec![WIDE, 1].into(), Some(vec![false, true].into())));
    let path = [Step::Field("payload".to_owned()), Step::Field("n".to_owned())];
    assert!(!is_wide_in(&everywhere(values), &path));
    let wide = StructArray::new(
        vec![Field::new("n", DataType::Int64, true)].into(),
        vec![Arc::new(Int64Array::from(vec![WIDE, 1]))],
        Some(vec![false, true].into()),
    );
    let batch = RecordBatch::try_from_iter([("payload", Arc::new(wide) as ArrayRef)]);
    assert!(!is_wide_in(&batch.expect("a batch"), &path));
}
