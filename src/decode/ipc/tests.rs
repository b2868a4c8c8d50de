//! Tests of Arrow IPC payloads.

use arrow::array::{
    BooleanArray, FixedSizeBinaryArray, Float64Array, Int32Array, Int32DictionaryArray, Int64Array,
    StringArray, StringViewArray, TimestampMillisecondArray, TimestampSecondArray, new_empty_array,
};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{Schema, UnionFields, UnionMode};
use arrow_ipc::writer::{DictionaryHandling, IpcWriteOptions, StreamWriter};

use super::*;
use crate::decode::column::list_of;

fn stream(columns: Vec<(&str, ArrayRef)>) -> Vec<u8> {
    let fields: Vec<Field> = columns
        .iter()
        .map(|(name, array)| Field::new(*name, array.data_type().clone(), true))
        .collect();
    let arrays = columns.into_iter().map(|(_, array)| array).collect();
    let batch = RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).expect("a batch");
    let mut writer = StreamWriter::try_new(Vec::new(), &batch.schema()).expect("a writer");
    writer.write(&batch).expect("written");
    writer.into_inner().expect("finished")
}

fn decode(streams: &[Vec<u8>]) -> (ArrayRef, Vec<String>) {
    let limits = RecordLimits::default();
    let mut decoder = IpcDecoder::new(Arc::default(), Projection::All, limits);
    let values: Vec<_> = streams.iter().map(|stream| Some(Value::new(stream))).collect();
    let mut bad = Vec::new();
    let array = decoder.decode(&values, &mut bad).expect("no failure of ours");
    (array, bad.into_iter().map(|bad| bad.reject.message).collect())
}

#[test]
fn what_is_spelled_out_is_counted_as_it_is() {
    let categories: Vec<String> = (0..1_000).map(|n| format!("category number {n:05}")).collect();
    let rows = (0..5_000).map(|row| categories[row % 1_000].as_str());
    let dictionary: Int32DictionaryArray = rows.clone().collect();
    let views: StringViewArray = rows.clone().map(Some).collect();
    let columns = vec![
        ("dictionary", Arc::new(dictionary) as ArrayRef),
        ("view", Arc::new(views) as ArrayRef),
    ];
    let (array, bad) = decode(&[stream(columns)]);
    assert!(bad.is_empty(), "{bad:?}");
    let plain = Arc::new(StringArray::from_iter_values(rows)) as ArrayRef;
    for column in array.as_struct().columns() {
        assert_eq!(column.as_ref(), plain.as_ref());
    }
    // Few bytes for many: 100,000 times the same 1 MB.
    let long = "x".repeat(1_000_000);
    let keys = Int32Array::from(vec![0; 100_000]);
    let dictionary = Int32DictionaryArray::new(keys, Arc::new(StringArray::from(vec![long])));
    let (_, bad) = decode(&[stream(vec![("a", Arc::new(dictionary))])]);
    assert_eq!(bad, ["more than the bytes one record may have"]);
}

#[test]
fn batches_that_share_a_dictionary_are_counted_together() {
    let long = "x".repeat(1_000_000);
    let batch = |rows: usize| {
        let dictionary: Int32DictionaryArray = std::iter::repeat_n(&*long, rows).collect();
        RecordBatch::try_from_iter([("a", Arc::new(dictionary) as ArrayRef)]).expect("a batch")
    };
    let of = |batches: usize| {
        let batch = batch(10);
        let mut writer = StreamWriter::try_new(Vec::new(), &batch.schema()).expect("a writer");
        (0..batches).for_each(|_| writer.write(&batch).expect("written"));
        writer.into_inner().expect("finished")
    };
    let (array, bad) = decode(&[of(6)]);
    assert_eq!((array.len(), bad.len()), (60, 0), "{bad:?}");
    assert_eq!(decode(&[of(7)]).1, ["more than the bytes one record may have"]);
}

#[test]
fn dictionaries_do_not_come_in_very_many_pieces() {
    let options = IpcWriteOptions::default().with_dictionary_handling(DictionaryHandling::Delta);
    let of = |pieces: usize| {
        let long = "x".repeat(100_000);
        let values: Vec<String> = (0..pieces).map(|n| format!("{long}{n}")).collect();
        let batch = |known: usize| {
            let keys = Int32Array::from(vec![known as i32 - 1]);
            let values = StringArray::from_iter_values(&values[..known]);
            let dictionary = Int32DictionaryArray::new(keys, Arc::new(values));
            RecordBatch::try_from_iter([("a", Arc::new(dictionary) as ArrayRef)]).expect("a batch")
        };
        let schema = batch(1).schema();
        let mut writer = StreamWriter::try_new_with_options(Vec::new(), &schema, options.clone())
            .expect("a writer");
        (1..=pieces).for_each(|known| writer.write(&batch(known)).expect("written"));
        writer.into_inner().expect("finished")
    };
    let (array, bad) = decode(&[of(90)]);
    assert_eq!((array.len(), bad.len()), (90, 0), "{bad:?}");
    // 0.1 + 0.2 + … 11 MB.
    assert_eq!(decode(&[of(110)]).1, ["more than the pieces its dictionaries may come in"]);
}

#[test]
fn no_value_becomes_another() {
    let floats = || Arc::new(Float64Array::from(vec![0.5])) as ArrayRef;
    let seconds = || Arc::new(TimestampSecondArray::from(vec![1])) as ArrayRef;
    let cases: Vec<(ArrayRef, ArrayRef)> = vec![
        (floats(), Arc::new(Int64Array::from(vec![9_007_199_254_740_993]))),
        (seconds(), Arc::new(TimestampMillisecondArray::from(vec![1_999]))),
    ];
    for (first, second) in cases {
        let (array, bad) = decode(&[stream(vec![("a", first)]), stream(vec![("a", second)])]);
        assert_eq!((array.len(), bad.len()), (2, 1), "{bad:?}");
    }
    let whole = Arc::new(Int64Array::from(vec![7])) as ArrayRef;
    let (_, bad) = decode(&[stream(vec![("a", floats())]), stream(vec![("a", whole)])]);
    assert!(bad.is_empty(), "{bad:?}");
}

#[test]
fn a_stream_without_rows_is_a_bad_row() {
    let ints = |values: Vec<i64>| vec![("a", Arc::new(Int64Array::from(values)) as ArrayRef)];
    let schema = Schema::new(vec![Field::new("b", DataType::Utf8, true)]);
    let mut writer = StreamWriter::try_new(Vec::new(), &schema).expect("a writer");
    writer.finish().expect("finished");
    let without_batch = writer.into_inner().expect("finished");
    let why = "an Arrow stream without rows";
    // Also before any columns are known.
    let (array, bad) = decode(std::slice::from_ref(&without_batch));
    assert_eq!((array.len(), array.logical_null_count(), bad), (1, 1, vec![why.to_owned()]));
    let (array, bad) = decode(&[stream(ints(vec![])), stream(ints(vec![1, 2])), without_batch]);
    assert_eq!((array.len(), bad), (4, vec![why.to_owned(); 2]));
    let nulls: Vec<bool> = (0..4).map(|row| array.is_null(row)).collect();
    assert_eq!(nulls, [true, false, false, true]);
}

#[test]
fn types_that_are_not_taken_are_bad_rows() {
    let ints = || Arc::new(Int64Array::from(vec![1])) as ArrayRef;
    let empty = |data_type: DataType| vec![("a", new_empty_array(&data_type))];
    let dictionary = |value| DataType::Dictionary(Box::new(DataType::Int8), Box::new(value));
    let union =
        UnionFields::try_new([0], [Field::new("x", DataType::Int64, true)]).expect("fields");
    for (columns, why) in [
        (vec![("a", ints()), ("a", ints())], "the field 'a' is there twice"),
        (empty(DataType::Union(union, UnionMode::Sparse)), "which karrow does not take"),
        (empty(DataType::FixedSizeBinary(1 << 30)), "more than 4096 bytes of a fixed size"),
        (empty(DataType::new_fixed_size_list(DataType::Int64, 1 << 28, true)), "does not take"),
        (empty(dictionary(list_of(dictionary(DataType::Utf8)))), "which karrow does not take"),
    ] {
        let (_, bad) = decode(&[stream(columns)]);
        assert!(bad.len() == 1 && bad[0].contains(why), "{bad:?} for {why}");
    }
    let wide: Vec<String> = (0..10_001).map(|n| format!("c{n}")).collect();
    let wide = wide.iter().map(|name| (name.as_str(), ints())).collect();
    let (_, bad) = decode(&[stream(wide)]);
    assert_eq!(bad, ["more than 10000 columns of a topic"]);
}

#[test]
fn columns_that_others_bring_are_counted() {
    let fixed = |size| {
        Arc::new(FixedSizeBinaryArray::try_from_iter([vec![0; size]].into_iter()).expect("one"))
            as ArrayRef
    };
    let wide = |columns: usize| -> Vec<u8> {
        let names: Vec<String> = (0..columns).map(|n| format!("c{n}")).collect();
        stream(names.iter().map(|name| (name.as_str(), fixed(4_096))).collect())
    };
    let (wide, too_wide) = (wide(100), wide(1_100));
    let bools = |rows: usize| {
        stream(vec![("b", Arc::new(BooleanArray::from(vec![true; rows])) as ArrayRef)])
    };
    let (many, some, few) = (bools(20_000), bools(400), bools(2));
    let mut decoder = IpcDecoder::new(Arc::default(), Projection::All, RecordLimits::default());
    let mut decode = |streams: &[Option<&[u8]>]| {
        let values: Vec<_> = streams.iter().map(|stream| stream.map(Value::new)).collect();
        let mut bad = Vec::new();
        let array = decoder.decode(&values, &mut bad).map_err(|error| error.kind())?;
        let bad: Vec<String> = bad.into_iter().map(|bad| bad.reject.message).collect();
        Ok((array.len(), bad))
    };
    // Alone, no batch holds it; the others are not touched.
    let why = "more than 268435456 bytes in the columns of the topic".to_owned();
    assert_eq!(decode(&[Some(&wide), Some(&many)]), Ok((2, vec![why.clone()])));
    assert_eq!(decode(&[Some(&many)]), Ok((1, vec![why])));
    assert_eq!(decode(&[Some(&few), None]), Ok((3, vec![])));
    // Each of them has room, both together do not. Nulls take as much.
    assert_eq!(decode(&[Some(&some), Some(&some)]), Err(ErrorKind::Exhausted));
    assert_eq!(decode(&[Some(&some)]), Ok((400, vec![])));
    assert_eq!(decode(&[None; 700]), Err(ErrorKind::Exhausted));
    assert_eq!(decode(&[None; 350]), Ok((350, vec![])));
    let why = "more than 4194304 bytes of a row of a topic".to_owned();
    assert_eq!(decode(&[Some(&too_wide)]), Ok((1, vec![why])));
    // So it is in lists.
    let lists = |items: ArrayRef| {
        let field = Arc::new(Field::new_list_field(items.data_type().clone(), true));
        let offsets = OffsetBuffer::from_lengths([items.len()]);
        stream(vec![("l", Arc::new(ListArray::new(field, offsets, items, None)) as ArrayRef)])
    };
    let object = |name: &str, array: ArrayRef| {
        Arc::new(StructArray::try_from(vec![(name, array)]).expect("an object")) as ArrayRef
    };
    let wide = lists(object("x", fixed(4_096)));
    let many = lists(object("y", Arc::new(BooleanArray::from(vec![true; 100_000]))));
    let (array, bad) = self::decode(&[wide, many]);
    let why = "more than 268435456 bytes in the columns of the topic";
    assert_eq!((array.len(), bad), (2, vec![why.to_owned()]));
}

#[test]
fn columns_of_one_message_are_counted_once() {
    let columns: Vec<String> = (0..300).map(|n| format!("c{n}")).collect();
    let ints = || Arc::new(Int64Array::from(vec![1; 1_000])) as ArrayRef;
    let wide = stream(columns.iter().map(|name| (name.as_str(), ints())).collect());
    // 10 times 2.4 MB.
    let (array, bad) = decode(&vec![wide; 10]);
    assert_eq!((array.len(), bad.len()), (10_000, 0), "{bad:?}");
}

#[test]
fn batches_of_many_rows_are_to_be_cut() {
    let rows = stream(vec![("a", Arc::new(Int64Array::from(vec![1; 400_000])) as ArrayRef)]);
    let mut decoder = IpcDecoder::new(Arc::default(), Projection::All, RecordLimits::default());
    let values = [Some(Value::new(&rows)); 3];
    let error = decoder.decode(&values, &mut Vec::new()).expect_err("too many");
    assert_eq!(error.kind(), ErrorKind::Exhausted);
    let array = decoder.decode(&values[..2], &mut Vec::new()).expect("not too many");
    assert_eq!(array.len(), 800_000);
}
