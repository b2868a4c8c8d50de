//! [`Run`]: a [`Program`] at work on one value.
//!
//! [`Program`]: super::program::Program

use std::collections::HashSet;

use arrow::datatypes::{IntervalMonthDayNano, i256};

use super::super::column::{Bytes, Column, Nulls, Values, pad_offsets, push};
use super::super::reject::{Meter, RecordLimits, Reject};
use super::cursor::{Cursor, Fail, malformed};
use super::program::{Items, Op, Record, Skip};

/// A double holds every integer up to here.
const DOUBLE_EXACT_MAX: u64 = 1 << 53;

/// A float holds every integer up to here.
const FLOAT_EXACT_MAX: u64 = 1 << 24;

/// Milliseconds of a day.
const DAY_MILLIS: i32 = 86_400_000;

/// The state of one value's decoding.
pub struct Run<'p> {
    meter: Meter,
    /// The first part of it that did not fit its column and was left out.
    misfit: Option<&'p str>,
    /// Where it failed, from the inside.
    path: Vec<&'p str>,
}

impl<'p> Run<'p> {
    /// Appends `body` as `row` of the struct column `column`. Returns what did not fit and was left out of the row, and how
    /// much the value [asked](Meter::asked) for.
    ///
    /// # Errors
    /// A bad value; the column has to be truncated to `row`.
    #[inline]
    pub fn append(
        record: &'p Record,
        body: &[u8],
        column: &mut Column,
        row: usize,
        limits: &RecordLimits,
    ) -> Result<(Option<&'p str>, usize), Reject> {
        let mut run = Self { meter: Meter::new(limits), misfit: None, path: Vec::new() };
        run.whole(record, body, column, row).map_err(|fail| run.located(*fail))?;
        Ok((run.misfit, run.meter.asked()))
    }

    /// Passes over `body`, which is one value and nothing else.
    ///
    /// # Errors
    /// It is not.
    pub fn check(skip: &Skip, body: &[u8], limits: &RecordLimits) -> Result<(), Reject> {
        let mut run = Run { meter: Meter::new(limits), misfit: None, path: Vec::new() };
        let mut cursor = Cursor::new(body);
        run.skip(&mut cursor, skip).and_then(|()| end(&cursor)).map_err(|fail| *fail)
    }

    #[inline]
    fn whole(
        &mut self,
        record: &'p Record,
        body: &[u8],
        column: &mut Column,
        row: usize,
    ) -> Result<(), Fail> {
        // What is decoded is as long as what is read, but for what the rest of this file counts.
        self.meter.bytes(body.len())?;
        let mut cursor = Cursor::new(body);
        self.record(&mut cursor, record, column, row)?;
        end(&cursor)
    }

    #[cold]
    fn located(&self, reject: Reject) -> Reject {
        match self.path.is_empty() {
            true => reject,
            false => {
                let path: Vec<&str> = self.path.iter().rev().copied().collect();
                Reject::new(
                    reject.reason,
                    format!("the field '{}': {}", path.join("."), reject.message),
                )
            }
        }
    }

    fn record(
        &mut self,
        cursor: &mut Cursor<'_>,
        record: &'p Record,
        column: &mut Column,
        row: usize,
    ) -> Result<(), Fail> {
        let Column { nulls, values: Values::Struct { len, fields }, .. } = column else {
            return Err(confused());
        };
        if *len < row {
            nulls.add(*len, row);
        }
        *len = row + 1;
        self.meter.elements(record.fields.len())?;
        for place in &record.fields {
            let done = match fields.get_mut(place.column) {
                Some(column) => self.value(cursor, &place.op, column, row),
                None => match &place.op {
                    Op::Skip(skip) => self.skip(cursor, skip),
                    _ => Err(confused()),
                },
            };
            if let Err(fail) = done {
                self.path.push(&place.name);
                return Err(fail);
            }
        }
        for default in &record.defaults {
            if let Some(column) = fields.get_mut(default.column) {
                self.meter.bytes(default.bytes.len())?;
                self.value(&mut Cursor::new(&default.bytes), &default.op, column, row)?;
            }
        }
        Ok(())
    }

    /// Appends a value of the kinds that are most frequent, right where it is called from.
    #[inline(always)]
    fn value(
        &mut self,
        cursor: &mut Cursor<'_>,
        op: &'p Op,
        column: &mut Column,
        row: usize,
    ) -> Result<(), Fail> {
        let op = match op {
            Op::Nullable { null, op } => {
                if cursor.position(2, "branch")? == *null {
                    return Ok(());
                }
                op
            }
            Op::Record(record) => return self.record(cursor, record, column, row),
            op => op,
        };
        let Column { nulls, values, .. } = column;
        match (op, values) {
            (Op::Text, Values::Bytes(bytes)) => text(cursor, bytes, nulls, row),
            (Op::Float, Values::Float32(values)) => {
                push(values, nulls, row, f32::from_le_bytes(cursor.array()?));
                Ok(())
            }
            (Op::Bool, Values::Bool(values)) => {
                push(values, nulls, row, cursor.boolean()?);
                Ok(())
            }
            (Op::Long, Values::Int64(values)) => {
                push(values, nulls, row, cursor.long()?);
                Ok(())
            }
            (Op::Int, Values::Int32(values)) => {
                push(values, nulls, row, cursor.int()?);
                Ok(())
            }
            (Op::Double, Values::Float64(values)) => {
                push(values, nulls, row, f64::from_le_bytes(cursor.array()?));
                Ok(())
            }
            _ => self.any_value(cursor, op, column, row),
        }
    }

    /// Appends a value of any other kind.
    #[inline(never)]
    fn any_value(
        &mut self,
        cursor: &mut Cursor<'_>,
        op: &'p Op,
        column: &mut Column,
        row: usize,
    ) -> Result<(), Fail> {
        match op {
            Op::Switch(ops) => {
                let at = cursor.position(ops.len(), "branch")?;
                let op = ops.get(at).ok_or_else(confused)?;
                return self.value(cursor, op, column, row);
            }
            // One that may be null.
            Op::Record(record) => return self.record(cursor, record, column, row),
            _ => {}
        }
        let Column { nulls, values, .. } = column;
        match (op, values) {
            (Op::Bytes, Values::Bytes(bytes)) => {
                let value = cursor.bytes()?;
                pad_offsets(&mut bytes.offsets, nulls, row);
                bytes.push(value)?;
            }
            (Op::Enum(symbols), Values::Bytes(bytes)) => {
                let at = cursor.position(symbols.len(), "symbol")?;
                let Some(symbol) = symbols.get(at).ok_or_else(confused)? else {
                    return Err(unknown_symbol(at));
                };
                // A byte became a word, which the length of the value does not cover.
                self.meter.bytes(symbol.len())?;
                pad_offsets(&mut bytes.offsets, nulls, row);
                bytes.push(symbol.as_bytes())?;
            }
            (Op::List(list), Values::List { offsets, items }) => {
                pad_offsets(offsets, nulls, row);
                let mut end = offsets.last().copied().unwrap_or(0);
                loop {
                    let block = cursor.block()?;
                    if block.count == 0 {
                        break;
                    }
                    let before = cursor.left();
                    self.room(block.count, list, end)?;
                    for _ in 0..block.count {
                        self.value(cursor, &list.op, items, index(end))?;
                        end += 1;
                    }
                    cursor.end_block(block, before)?;
                }
                offsets.push(end);
            }
            (Op::Map(map), Values::Map { offsets, keys, values }) => {
                pad_offsets(offsets, nulls, row);
                let begin = offsets.last().copied().unwrap_or(0);
                let mut end = begin;
                let Values::Bytes(keys) = &mut keys.values else { return Err(confused()) };
                loop {
                    let block = cursor.block()?;
                    if block.count == 0 {
                        break;
                    }
                    let before = cursor.left();
                    self.room(block.count, map, end)?;
                    for _ in 0..block.count {
                        let key = cursor.bytes()?;
                        if !is_utf8(key) {
                            return Err(malformed("no UTF-8"));
                        }
                        keys.push(key)?;
                        self.value(cursor, &map.op, values, index(end))?;
                        end += 1;
                    }
                    cursor.end_block(block, before)?;
                }
                unique(keys, index(begin), index(end))?;
                offsets.push(end);
            }
            (Op::Into(at, op), Values::Struct { len, fields }) => {
                if *len < row {
                    nulls.add(*len, row);
                }
                *len = row + 1;
                match (at.and_then(|at| fields.get_mut(at)), op.as_ref()) {
                    (Some(column), op) => return self.value(cursor, op, column, row),
                    (None, Op::Skip(skip)) => return self.skip(cursor, skip),
                    (None, _) => return Err(confused()),
                }
            }
            (Op::IntToLong, Values::Int64(values)) => {
                push(values, nulls, row, i64::from(cursor.int()?));
            }
            (Op::IntToDouble, Values::Float64(values)) => {
                push(values, nulls, row, f64::from(cursor.int()?));
            }
            (Op::LongToDouble, Values::Float64(values)) => {
                push(values, nulls, row, exact(cursor.long()?, DOUBLE_EXACT_MAX)? as f64);
            }
            (Op::IntToFloat, Values::Float32(values)) => {
                push(values, nulls, row, exact(i64::from(cursor.int()?), FLOAT_EXACT_MAX)? as f32);
            }
            (Op::LongToFloat, Values::Float32(values)) => {
                push(values, nulls, row, exact(cursor.long()?, FLOAT_EXACT_MAX)? as f32);
            }
            (Op::FloatToDouble, Values::Float64(values)) => {
                push(values, nulls, row, f64::from(f32::from_le_bytes(cursor.array()?)));
            }
            (Op::TimeMillis, Values::Int32(values)) => {
                let value = cursor.int()?;
                if !(0..DAY_MILLIS).contains(&value) {
                    return Err(no_time(i64::from(value), "milliseconds"));
                }
                push(values, nulls, row, value);
            }
            (Op::TimeMicros, Values::Int64(values)) => {
                let value = cursor.long()?;
                if !(0..i64::from(DAY_MILLIS) * 1000).contains(&value) {
                    return Err(no_time(value, "microseconds"));
                }
                push(values, nulls, row, value);
            }
            (Op::Fixed(size), Values::Fixed { size: width, data }) if size == width => {
                let value = cursor.take(*size)?;
                let len = data.len().checked_div(*size).unwrap_or(0);
                if len < row {
                    nulls.add(len, row);
                    data.resize(row * *size, 0);
                }
                data.extend_from_slice(value);
            }
            (Op::FixedBytes(size), Values::Bytes(bytes)) => {
                let value = cursor.take(*size)?;
                pad_offsets(&mut bytes.offsets, nulls, row);
                bytes.push(value)?;
            }
            (Op::UuidBytes, Values::Bytes(bytes)) => {
                let value = cursor.array()?;
                self.meter.bytes(36)?;
                pad_offsets(&mut bytes.offsets, nulls, row);
                bytes.push(&hyphenated(value))?;
            }
            (Op::Decimal128 { size, end }, Values::Decimal128(values)) => {
                let value = i128::from_be_bytes(widened(unscaled(cursor, *size)?)?);
                if value >= *end || value <= -*end {
                    return Err(too_many_digits());
                }
                push(values, nulls, row, value);
            }
            (Op::Decimal256 { size, end }, Values::Decimal256(values)) => {
                let value = i256::from_be_bytes(widened(unscaled(cursor, *size)?)?);
                if value >= *end || value <= end.wrapping_neg() {
                    return Err(too_many_digits());
                }
                push(values, nulls, row, value);
            }
            (Op::Duration, Values::Interval(values)) => {
                push(values, nulls, row, duration(cursor)?);
            }
            (Op::Null, _) => {}
            (Op::Skip(skip), _) => return self.skip(cursor, skip),
            (Op::Misfit(misfit), _) => {
                self.misfit.get_or_insert(&misfit.message);
                return self.skip(cursor, &misfit.skip);
            }
            _ => return Err(confused()),
        }
        Ok(())
    }

    /// Counts items before there are any, so that a count of billions costs nothing.
    #[inline(always)]
    fn room(&mut self, count: usize, items: &Items, end: i32) -> Result<(), Fail> {
        self.meter.elements(count)?;
        self.meter.bytes(count.saturating_mul(items.size))?;
        match i32::try_from(count).ok().and_then(|count| end.checked_add(count)) {
            Some(_) => Ok(()),
            None => Err(Box::new(Reject::limit("2^31 items in one batch"))),
        }
    }

    /// Passes over a value.
    fn skip(&mut self, cursor: &mut Cursor<'_>, skip: &Skip) -> Result<(), Fail> {
        match skip {
            Skip::Fixed(size) => cursor.take(*size).map(|_| ()),
            Skip::Varint => cursor.long().map(|_| ()),
            Skip::Bytes => cursor.bytes().map(|_| ()),
            Skip::All(all) => {
                self.meter.elements(all.len())?;
                all.iter().try_for_each(|skip| self.skip(cursor, skip))
            }
            Skip::OneOf(branches) => {
                let at = cursor.position(branches.len(), "branch")?;
                self.skip(cursor, branches.get(at).ok_or_else(confused)?)
            }
            Skip::Items(_) | Skip::Pairs(_) => {
                loop {
                    let block = cursor.block()?;
                    if block.count == 0 {
                        break;
                    }
                    self.meter.elements(block.count)?;
                    if let Some(size) = block.size {
                        cursor.take(size)?;
                        continue;
                    }
                    for _ in 0..block.count {
                        match skip {
                            Skip::Pairs(value) => {
                                cursor.bytes()?;
                                self.skip(cursor, value)?;
                            }
                            Skip::Items(item) => self.skip(cursor, item)?,
                            _ => {}
                        }
                    }
                }
                Ok(())
            }
        }
    }
}

fn end(cursor: &Cursor<'_>) -> Result<(), Fail> {
    match cursor.left() {
        0 => Ok(()),
        left => Err(Box::new(Reject::new(
            super::super::reject::Reason::Truncated,
            format!("{left} bytes follow the value"),
        ))),
    }
}

/// Appends text as `row`.
#[inline(always)]
fn text(
    cursor: &mut Cursor<'_>,
    bytes: &mut Bytes,
    nulls: &mut Nulls,
    row: usize,
) -> Result<(), Fail> {
    let (text, rest) = cursor.bytes_and_rest()?;
    if !is_utf8(text) {
        return Err(malformed("no UTF-8"));
    }
    pad_offsets(&mut bytes.offsets, nulls, row);
    match rest.first_chunk::<SHORT>() {
        // Copying a few bytes too many is faster than finding out how many there are.
        Some(chunk) if text.len() <= SHORT => {
            let end = bytes.data.len() + text.len();
            bytes.data.extend_from_slice(chunk);
            bytes.data.truncate(end);
        }
        _ => bytes.data.extend_from_slice(text),
    }
    bytes.end_row()?;
    Ok(())
}

/// Text that is copied as a whole.
const SHORT: usize = 16;

#[inline(always)]
fn is_utf8(text: &[u8]) -> bool {
    if text.len() > 64 {
        return simdutf8::basic::from_utf8(text).is_ok();
    }
    let (words, rest) = text.as_chunks::<8>();
    let words = words.iter().fold(0, |all, word| all | u64::from_ne_bytes(*word));
    let rest = rest.iter().fold(0, |all, byte| all | *byte);
    let is_ascii = words & 0x8080_8080_8080_8080 == 0 && rest < 0x80;
    is_ascii || simdutf8::basic::from_utf8(text).is_ok()
}

#[inline(always)]
fn exact(value: i64, max: u64) -> Result<i64, Fail> {
    match value.unsigned_abs() <= max {
        true => Ok(value),
        false => Err(Box::new(Reject::value(format!(
            "the column is of floating point and does not hold {value} exactly"
        )))),
    }
}

/// The bytes of a decimal.
fn unscaled<'a>(cursor: &mut Cursor<'a>, size: Option<usize>) -> Result<&'a [u8], Fail> {
    match size {
        Some(size) => cursor.take(size),
        None => cursor.bytes(),
    }
}

/// A number in two's complement with as many bytes as an integer has.
fn widened<const N: usize>(bytes: &[u8]) -> Result<[u8; N], Fail> {
    let Some(first) = bytes.first() else { return Err(malformed("a decimal without bytes")) };
    let sign = if *first & 0x80 == 0 { 0 } else { 0xff };
    let mut wide = [sign; N];
    let (extra, bytes) = bytes.split_at(bytes.len().saturating_sub(N));
    let is_negative = bytes.first().is_some_and(|byte| byte & 0x80 != 0);
    // A fixed of any size may hold a number of few digits.
    if extra.iter().any(|byte| *byte != sign) || is_negative != (sign == 0xff) {
        return Err(too_many_digits());
    }
    if let Some(low) = wide.get_mut(N - bytes.len()..) {
        low.copy_from_slice(bytes);
    }
    Ok(wide)
}

#[cold]
fn too_many_digits() -> Fail {
    Box::new(Reject::value("a decimal of more digits than the schema says"))
}

#[cold]
fn no_time(value: i64, unit: &str) -> Fail {
    Box::new(Reject::value(format!("{value} {unit} are no time of a day")))
}

#[cold]
fn unknown_symbol(at: usize) -> Fail {
    Box::new(Reject::value(format!("the configured schema does not have symbol {at} of the enum")))
}

/// A program and a column that were not made for each other: a mistake of ours.
#[cold]
fn confused() -> Fail {
    Box::new(Reject::schema("the schema was prepared for another column"))
}

fn duration(cursor: &mut Cursor<'_>) -> Result<IntervalMonthDayNano, Fail> {
    let mut part = || cursor.array::<4>().map(u32::from_le_bytes);
    let (months, days, millis) = (part()?, part()?, part()?);
    match (i32::try_from(months), i32::try_from(days)) {
        (Ok(months), Ok(days)) => {
            Ok(IntervalMonthDayNano { months, days, nanoseconds: i64::from(millis) * 1_000_000 })
        }
        _ => Err(Box::new(Reject::value(format!(
            "a duration of {months} months and {days} days; Arrow holds 2^31 of each"
        )))),
    }
}

/// The text of a UUID.
pub fn hyphenated(bytes: [u8; 16]) -> Vec<u8> {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| DIGITS.get(usize::from(nibble)).copied().unwrap_or(b'0');
    let mut text = Vec::with_capacity(36);
    for (at, byte) in bytes.into_iter().enumerate() {
        if matches!(at, 4 | 6 | 8 | 10) {
            text.push(b'-');
        }
        text.push(digit(byte >> 4));
        text.push(digit(byte & 0xf));
    }
    text
}

/// Arrow's maps may hold a key once.
fn unique(keys: &Bytes, begin: usize, end: usize) -> Result<(), Fail> {
    let ends = keys.offsets.get(begin..=end).unwrap_or_default();
    let key = |at: usize| {
        let (from, to) = (ends.get(at).copied(), ends.get(at + 1).copied());
        keys.data.get(index(from.unwrap_or(0))..index(to.unwrap_or(0))).unwrap_or_default()
    };
    let count = end - begin;
    let is_twice = match count {
        0 | 1 => None,
        // Comparing few is faster than hashing them.
        2..=8 => (1..count).find(|at| (0..*at).any(|before| key(before) == key(*at))),
        _ => {
            let mut seen = HashSet::with_capacity(count);
            (0..count).find(|at| !seen.insert(key(*at)))
        }
    };
    match is_twice {
        Some(at) => {
            let key = String::from_utf8_lossy(key(at)).into_owned();
            Err(Box::new(Reject::value(format!("the key '{key}' is in a map twice"))))
        }
        None => Ok(()),
    }
}

#[inline(always)]
fn index(offset: i32) -> usize {
    usize::try_from(offset).unwrap_or(0)
}
